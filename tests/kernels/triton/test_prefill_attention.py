"""Prefill attention of listed queries."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.attention import Queries
from depthdial.kernels.triton.prefill_attention import attend_prompt

# a chunk in the middle of a prompt, one from its start, and one of a single token
TOKENS = [(0, p) for p in range(60, 100)] + [(1, p) for p in range(20)] + [(2, 66)]
STARTS = [0, 40, 60, 61]


@pytest.mark.parametrize(
    ("every", "dtype", "window"),
    [(1, torch.float32, None), (2, torch.float32, 9), (2, torch.bfloat16, None), (0, torch.bfloat16, 9)],
)
def test_listed_queries_equal_the_reference(every, dtype, window, scene, close, device):
    s = scene(TOKENS, 2, 12, dtype)
    q = torch.randn(len(TOKENS), 4, 12, device=device).to(dtype)
    norm = Norm(torch.randn(12, device=device).to(dtype), 1e-6) if every == 2 else None
    index = list(range(0, len(TOKENS), every)) if every else []
    bounds = torch.tensor([sum(i < start for i in index) for start in STARTS], dtype=torch.int32, device=device)
    out = torch.full((len(TOKENS), 48), 7.0, device=device, dtype=dtype)
    listed = None if every == 1 else torch.tensor([*index, 0], dtype=torch.int32, device=device)
    queries = Queries(q.flatten(1), norm, s.angles.cos["full"], s.angles.sin["full"], 0.3, window)
    attend_prompt(queries, s.k_cache, s.v_cache, s.place, listed, bounds, 40, out, tile=16)
    turned = q if norm is None else definition.rms_norm(q, *norm)
    turned = definition.rope(turned, s.place.positions, s.rope.inv_freq, s.rope.scaling)
    where = s.place.page_table, s.place.sequences, s.place.positions
    wanted = torch.full_like(out, 7.0)
    wanted[index] = definition.attend(turned, s.k_cache, s.v_cache, *where, 0.3, window)[index]
    close(out, wanted)


def test_pages_read_follow_the_list(scene, device):
    s = scene(TOKENS)
    q = torch.randn(len(TOKENS), 2 * 8, device=device)
    work = torch.zeros(1, dtype=torch.int32, device=device)
    queries = Queries(q, None, s.angles.cos["full"], s.angles.sin["full"], 1.0, None)
    # rows 0 to 2 of the first run (page 0), row 60 alone (pages 0 and 1); nothing of the second run
    listed = torch.tensor([0, 1, 2, 60], dtype=torch.int32, device=device)
    bounds = torch.tensor([0, 3, 3, 4], dtype=torch.int32, device=device)
    attend_prompt(queries, s.k_cache, s.v_cache, s.place, listed, bounds, 40, torch.zeros_like(q), work, tile=16)
    assert work.item() == 2 * (1 + 2)  # two heads
