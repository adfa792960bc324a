"""Between two settings of a dial the rows take turns, so that a mean cost is met."""

from __future__ import annotations

import pytest
import torch

from depthdial.evaluate.equal_cost import KnobMix, mix_between


def test_turns_are_spread_evenly():
    high = KnobMix(0.0, 1.0, 0.25).at_high(torch.arange(16))
    assert high.view(4, 4).sum(1).tolist() == [1, 1, 1, 1]
    assert KnobMix(0.0, 1.0, 0.0).at_high(torch.arange(9)).sum() == 0
    assert KnobMix(0.0, 1.0, 1.0).at_high(torch.arange(9)).all()


def test_between_known_settings():
    mix = mix_between({0.1: 0.9, 0.5: 0.7, 0.3: 0.8}, 0.75)
    assert isinstance(mix, KnobMix) and (mix.low, mix.high) == (0.5, 0.3) and mix.share == pytest.approx(0.5)
    assert mix_between({0.0: 0.7, 1.0: 0.9}, 0.9) == 1.0
    with pytest.raises(ValueError, match=r"at most 0\.900"):
        mix_between({0.0: 0.7, 1.0: 0.9}, 0.95)
