"""What is measured fits the model where nobody asked for more."""

from __future__ import annotations

import pytest

from depthdial.evaluate.speed.options import Options

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
    found = Options(unasked=OURS).fitted(context)
    assert (found.prefill, found.prompt_tokens, found.new_tokens) == fits
    assert found.longest <= context


def test_what_was_asked_for_stays():
    found = Options(prefill=(512,), unasked=OURS - {"prefill"}).fitted(64)
    assert found.prefill == (512,) and (found.prompt_tokens, found.new_tokens) == (32, 32)
    assert Options().fitted(64) == Options()
    assert "unasked" not in Options(unasked=OURS).to_json()
