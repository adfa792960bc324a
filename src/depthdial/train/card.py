"""The model card written beside a trained plug-in: what it is, what it was trained on, what it costs."""

from __future__ import annotations

from depthdial.methods import name_of
from depthdial.models.checkpoint import Plugin


def card(plugin: Plugin, licence: str = "apache-2.0") -> str:
    """Markdown with the metadata block that the hub reads. Quality tables are added by whoever evaluates."""
    told = plugin.training
    rows = told.get("rows", {})
    curve = plugin.curves["text"]
    table = "\n".join(
        f"| {offset:+.2f} | {cost:.3f} | {kl:.4f} |"
        for offset, cost, kl in zip(curve.offsets, curve.costs, curve.kls, strict=True)
    )
    data = ", ".join(dict.fromkeys(file.rpartition("/")[2] for file in told["data"]))
    dropped = ", ".join(told["drop_sources"]) or "none"
    start = told.get("start_from")
    fit = f"after {told['fit_steps']} steps of fitting adapters layer by layer"
    before = f"from the plug-in {start}" if start else fit
    return f"""---
license: {licence}
base_model: {told["model"]}
library_name: depthdial
tags: [adaptive-depth, layer-skipping, {name_of(plugin.method)}]
---
# {plugin.name}

A depthdial plug-in: `{plugin.method}`.

It belongs to a base of type `{plugin.base.model_type}` with weights `{plugin.base.weights[:16]}` (sha256 of their bf16
form) and leaves that base as it is. Recommended budget: {plugin.recommended}.

## Training
- objective: {told["objective"]}; {told["steps"]} steps of {told["batch"] * told["accumulate"]} rows of
  {told["length"]} tokens {before}; learning rate {told["lr"]}; seed {told["seed"]}
- budgets trained: {told["lowest"]} to {told["highest"]}, drawn per row
- data: {data}; sources left out: {dropped}; {rows.get("tokens", 0):,} tokens available; 1 % of the documents held out

## The dial, measured on held-out rows
| logit offset | true cost | KL from the base, nats/token |
|---|---|---|
{table}
"""
