"""What is measured fits the model where nobody asked for more."""

from __future__ import annotations

import pytest

from depthdial.evaluate.speed.options import SpeedOptions

OURS = frozenset(("prefill", "prompt_tokens", "new_tokens"))


@pytest.mark.parametrize(
    ("context", "fits"),
    [
        (8192, ((512, 2048, 8000), 32, 64)),
        (4096, ((512, 2048, 4095), 32, 64)),
        (513, ((512,), 32, 64)),
        (512, ((511,), 32, 64)),
        (80, ((79,), 32, 48)),
        (8, ((7,), 4, 4)),
    ],
)
def test_our_own_lengths_are_cut_to_the_context(context, fits):
    found = SpeedOptions(unasked=OURS).fit(context)
    assert (found.prefill, found.prompt_tokens, found.new_tokens) == fits
    assert found.longest <= context


def test_what_was_asked_for_stays():
    found = SpeedOptions(prefill=(512,), unasked=OURS - {"prefill"}).fit(64)
    assert found.prefill == (512,) and (found.prompt_tokens, found.new_tokens) == (32, 32)
    assert SpeedOptions().fit(64) == SpeedOptions()
    assert "unasked" not in SpeedOptions(unasked=OURS).to_json()
