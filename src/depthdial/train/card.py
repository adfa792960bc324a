"""The model card written beside a trained plug-in: what it is, what it was trained on, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthdial.methods import name_of
from depthdial.models.checkpoint import Plugin


def plugin_card(plugin: Plugin) -> str:
    """Markdown with the metadata block that the hub reads. Quality tables are added by whoever evaluates, and a licence
    by whoever publishes: base and data have their own."""
    run = plugin.training
    rows = run.get("rows", {})
    curve = plugin.curves["text"]
    table = "\n".join(
        f"| {offset:+.2f} | {cost:.3f} | {kl:.4f} |"
        for offset, cost, kl in zip(curve.offsets, curve.costs, curve.kls, strict=True)
    )
    data = ", ".join(dict.fromkeys(file.rpartition("/")[2] for file in run["data"]))
    left_out = ", ".join(run["drop_sources"]) or "none"
    start = run.get("start_from")
    fit = f"after {run['fit_steps']} steps of fitting adapters layer by layer"
    before = f"from the plug-in {start}" if start else fit
    training = f"""objective: {run["objective"]}; {run["steps"]} steps of {run["batch"] * run["accumulate"]} rows of
  {run["length"]} tokens {before}; learning rate {run["lr"]}; seed {run["seed"]}
- {_budgets(run)}"""
    form = f"It was {plugin.form}." if plugin.form else ""
    if not run["steps"]:
        training = f"nothing was trained; the dial was measured on rows of {run['length']} tokens; seed {run['seed']}"
    return f"""---
base_model: {run["model"]}
library_name: depthdial
tags: [adaptive-depth, layer-skipping, {name_of(plugin.method)}]
---
# {plugin.name}

A depthdial plug-in: `{plugin.method}`.

It belongs to a base of type `{plugin.base.model_type}` with weights `{plugin.base.weights[:16]}` (sha256 of their bf16
form) and leaves that base as it is. Recommended budget: {plugin.recommended}. {form}

## Training
- {training}
- data: {data}; sources left out: {left_out}; {rows.get("tokens", 0):,} tokens available; 1 % of the documents held out

## The dial, measured on held-out rows
| logit offset | true cost | KL from the base, nats/token |
|---|---|---|
{table}
"""


def _budgets(run: Mapping[str, Any]) -> str:
    if run["lowest"] is None or run["highest"] is None:
        return "trained at no budget: the method's own loss decides how much is skipped"
    return f"budgets trained: {run['lowest']:g} to {run['highest']:g}, drawn per row"
