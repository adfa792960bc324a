"""From a true cost to how many layers a token may leave out for it, by a base's configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from depthdial.methods import FlexiDepth, Static
from depthdial.models.ahead import skeleton
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of


@dataclass(frozen=True)
class Price:
    """Shares of the dense work for a token."""

    saved: float
    """By a layer that is left out."""
    fixed: float = 0.0
    """Spent on routers, whatever is left out."""

    def dropped(self, cost: float) -> float:
        """Layers left out on average, for a true cost."""
        return (1 - cost + self.fixed) / self.saved

    def cost(self, dropped: float) -> float:
        return 1 + self.fixed - dropped * self.saved


def dropping(config: PretrainedConfig) -> Price:
    """Of layers that are gone for all tokens: they leave no K and V."""
    ledger = converted_of(convert(skeleton(config), Static(order=(0,), adapter_ratio=0))).ledger
    return Price(ledger.saved[0] / ledger.dense)


def routing(config: PretrainedConfig) -> Price:
    """Of layers skipped by single tokens: K and V are written, and routers and adapters run, those of FlexiDepth on
    all layers."""
    ledger = converted_of(convert(skeleton(config), FlexiDepth(first=0))).ledger
    looks = sum(work.look for work in ledger.steps)
    return Price(max(ledger.saved) / ledger.dense, looks / ledger.dense)
