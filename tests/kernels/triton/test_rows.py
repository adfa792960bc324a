"""Lists of kept and skipped rows, made on the device."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.kernels.triton.rows import Split, split


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=50), st.data())
def test_lists_are_the_mask_in_order_and_hold_no_padding(mask: list[bool], data):
    live = data.draw(st.integers(0, len(mask)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep = torch.tensor(mask, dtype=torch.uint8, device=device)
    into = Split.empty(len(mask), device)
    split(keep, torch.tensor([live], dtype=torch.int32, device=device), into)
    for rows, wanted in ((into.kept, True), (into.skipped, False)):
        assert rows.index is not None
        expected = [i for i, kept in enumerate(mask[:live]) if kept is wanted]
        assert rows.count.item() == len(expected)
        assert rows.index[: len(expected)].tolist() == expected


def test_a_mask_longer_than_a_block(device):
    keep = (torch.arange(2500, device=device) % 3 != 0).to(torch.uint8)
    into = Split.empty(2500, device)
    split(keep, torch.tensor([2400], dtype=torch.int32, device=device), into)
    assert into.kept.index is not None and into.skipped.index is not None
    assert into.kept.index[: into.kept.count].tolist() == keep[:2400].nonzero().flatten().tolist()
    assert into.skipped.index[: into.skipped.count].tolist() == (keep[:2400] == 0).nonzero().flatten().tolist()
