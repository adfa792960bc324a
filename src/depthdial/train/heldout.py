"""Held-out loss of a model that is pre-trained, and what it executed: in inference mode, over all processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedModel, TrainerCallback

from depthdial.models.converted import converted_of
from depthdial.train import processes
from depthdial.train.next_token import sums, token_losses
from depthdial.train.rows import Rows

Figures = dict[str, Any]


@torch.no_grad()
def measure_heldout(model: PreTrainedModel, rows: Rows, batch: int, most: int, bf16: bool) -> Figures:
    """Mean loss per token (nats), cost, layers, density and density per layer on the first of `rows`.

    batch: rows at once over all processes; most: tokens at most; bf16: under autocast, as in training. Every process
    runs the same number of passes; a row that is there only to make that so does not count.
    """
    route, device, was = converted_of(model).route, model.device, model.training
    count, many = max(1, min(len(rows), most // rows.length)), processes.world()
    own = max(1, batch // many)
    totals: dict[str, Tensor] = {}
    model.eval()
    try:
        for start in range(0, count, own * many):
            places = [start + processes.rank() * own + i for i in range(own)]
            ids = default_collate([rows[place if place < count else 0]["input_ids"] for place in places]).to(device)
            real = torch.tensor([float(place < count) for place in places], device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = token_losses(model(input_ids=ids, use_cache=False).logits, ids)
            now = {"loss": (losses * real[:, None]).sum(), **sums(route, losses.shape[1], real)}
            totals = {name: totals[name] + value if name in totals else value for name, value in now.items()}
    finally:
        model.train(was)
    processes.total(list(totals.values()))
    return heldout_figures({name: value / totals["tokens"] for name, value in totals.items()}, routed_layers(model))


def heldout_figures(means: dict[str, Tensor], places: Sequence[int]) -> Figures:
    """Figures for people and files from means per token: loss, cost, layers, density (over routed layers) and its
    value for each layer."""
    layers = [round(x, 5) for x in means["kept"].tolist()]
    density = sum(layers[i] for i in places) / len(places) if places else 1.0
    plain = {name: float(means[name]) for name in ("loss", "cost", "layers")}
    return {**plain, "density": density, "density_per_layer": layers}


def routed_layers(model: PreTrainedModel) -> list[int]:
    """The layers that make decisions, by their place in the program."""
    program = converted_of(model).program
    return sorted({program.visit_of[s] for s in program.routed})


class Evaluate(TrainerCallback):
    """Measures held-out text every `every` steps, into metrics.jsonl as heldout_*."""

    def __init__(self, model: PreTrainedModel, rows: Rows, batch: int, most: int, bf16: bool, every: int, folder: Path):
        self.model, self.rows, self.batch, self.most, self.bf16 = model, rows, batch, most, bf16
        self.every, self.file = every, folder / "metrics.jsonl"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (
            state.global_step % self.every or state.global_step >= state.max_steps
        ):  # the last one is measured at the end
            return
        figures = measure_heldout(self.model, self.rows, self.batch, self.most, self.bf16)
        if processes.is_main():
            with self.file.open("a") as file:
                entry = {f"heldout_{name}": value for name, value in figures.items()}
                file.write(json.dumps({"step": state.global_step, **entry}) + "\n")
