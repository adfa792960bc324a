"""Decode attention over pages."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.attention import Parts, Queries, attend, splits_for

TOKENS = [(0, 130), (1, 0), (2, 63), (0, 64), (3, 200), (4, 12)]


def _reference(s, q, norm, window):
    turned = q if norm is None else definition.rms_norm(q, *norm)
    turned = definition.rope(turned, s.place.positions, s.rope.inv_freq, s.rope.scaling)
    where = s.place.page_table, s.place.sequences, s.place.positions
    return definition.attend(turned, s.k_cache, s.v_cache, *where, 0.3, window)


@pytest.mark.parametrize(
    ("dtype", "group", "head_dim", "splits", "window"),
    [
        (torch.float32, 2, 8, 1, None),
        (torch.float32, 3, 40, 2, 70),
        (torch.float32, 2, 8, 4, None),
        (torch.bfloat16, 3, 40, 1, 70),
        (torch.bfloat16, 2, 8, 2, None),
    ],
)
def test_listed_rows_equal_the_reference(dtype, group, head_dim, splits, window, scene, some_rows, close, device):
    s = scene(TOKENS, 2, head_dim, dtype)
    q = torch.randn(len(TOKENS), 2 * group, head_dim, device=device).to(dtype)
    norm = Norm(torch.randn(head_dim, device=device).to(dtype), 1e-6) if splits == 2 else None
    out = torch.full((len(TOKENS), 2 * group * head_dim), 7.0, device=device, dtype=dtype)
    parts = Parts.empty(len(TOKENS), 2 * group, 2, head_dim, splits, device)
    queries = Queries(q.flatten(1), norm, s.angles.cos["full"], s.angles.sin["full"], 0.3, window)
    index = [0, 1, 2, 4]
    for _ in range(2):  # twice: the counters of arrivals must be back at 0
        attend(queries, s.k_cache, s.v_cache, s.place, some_rows(index), out, parts)
    wanted = torch.full_like(out, 7.0)
    wanted[index] = _reference(s, q, norm, window)[index]
    close(out, wanted)


@pytest.mark.parametrize(("window", "pages"), [(None, 3 + 1), (60, 2 + 1)])
def test_pages_read_are_those_in_sight_of_listed_rows(window, pages, scene, some_rows, device):
    s = scene(TOKENS)
    q = torch.randn(len(TOKENS), 2 * 8, device=device)
    out, parts = torch.zeros_like(q), Parts.empty(len(TOKENS), 2, 2, 8, 2, device)
    work = torch.zeros(1, dtype=torch.int32, device=device)
    queries = Queries(q, None, s.angles.cos["full"], s.angles.sin["full"], 1.0, window)
    attend(queries, s.k_cache, s.v_cache, s.place, some_rows([0, 2]), out, parts, work)
    assert work.item() == 2 * pages  # two heads of K and V


def test_splits_fill_the_device_and_stop_at_the_pages():
    assert splits_for(1, 8, 64) == 32 and splits_for(1, 8, 4) == 4
    assert splits_for(256, 8, 64) == 1 and splits_for(16, 8, 64) == 4
