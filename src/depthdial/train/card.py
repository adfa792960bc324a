"""The model card written beside a trained plug-in: what it is, what it was trained on, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthdial.models.checkpoint import Plugin
from depthdial.models.hub import plugin_card


def training_card(plugin: Plugin) -> str:
    """The model card of a plug-in that `train.run` trained."""
    run = plugin.training
    rows = run.get("rows", {})
    data = ", ".join(dict.fromkeys(file.rpartition("/")[2] for file in run["data"]))
    left_out = ", ".join(run["drop_sources"]) or "none"
    start = run.get("start_from")
    fit = f"after {run['fit_steps']} steps of fitting adapters layer by layer"
    before = f"from the plug-in {start}" if start else fit
    training = f"""objective: {run["objective"]}; {run["steps"]} steps of {run["batch"] * run["accumulate"]} rows of
  {run["length"]} tokens {before}; learning rate {run["lr"]}; seed {run["seed"]}
- {_budgets(run)}"""
    if not run["steps"]:
        training = f"nothing was trained; the dial was measured on rows of {run['length']} tokens; seed {run['seed']}"
    section = f"""## Training
- {training}
- data: {data}; sources left out: {left_out}; {rows.get("tokens", 0):,} tokens available; 1 % of the documents held out

"""
    return plugin_card(plugin, plugin.name, run["model"], section)


def _budgets(run: Mapping[str, Any]) -> str:
    if run["lowest"] is None or run["highest"] is None:
        return "trained at no budget: the method's own loss decides how much is skipped"
    return f"budgets trained: {run['lowest']:g} to {run['highest']:g}, drawn per row"
