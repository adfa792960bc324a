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
    result = SpeedOptions(unasked=OURS).fit(context)
    assert (result.prefill, result.prompt_tokens, result.new_tokens) == fits
    assert result.longest <= context


def test_what_was_asked_for_stays():
    result = SpeedOptions(prefill=(512,), unasked=OURS - {"prefill"}).fit(64)
    assert result.prefill == (512,) and (result.prompt_tokens, result.new_tokens) == (32, 32)
    assert SpeedOptions().fit(64) == SpeedOptions()
    assert "unasked" not in SpeedOptions(unasked=OURS).to_json()
