"""One pre-training run from files to a Hugging Face folder: tokenise, build, train, measure held-out text, save."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedModel, Trainer

from depthdial.core.method import Method
from depthdial.models.base import load_base
from depthdial.models.converted import converted_of
from depthdial.models.scratch import Spec, fresh
from depthdial.train import processes
from depthdial.train.callbacks import Report
from depthdial.train.gathered import gather
from depthdial.train.heldout import Evaluate, Figures, measure_heldout, routed_layers
from depthdial.train.machine import compile_pieces, keep_memory
from depthdial.train.next_token import NextToken, Steps
from depthdial.train.pretrain_config import PretrainConfig
from depthdial.train.results import run_figures, samples_of, save_model
from depthdial.train.rows import Rows
from depthdial.train.settings import claim, config_json, settings_in, write_settings
from depthdial.train.sharding import sharding
from depthdial.train.shards import make_shards
from depthdial.train.throughput import gather_pays, matmul_rate, needed_macs, utilisation
from depthdial.train.trainer import train_in_place

log = logging.getLogger(__name__)
SETTINGS_FILE = "pretrain.json"
FREE = (
    "output",
    "shards",
    "save_every",
    "eval_every",
    "heldout_tokens",
    "device",
    "data",
    "strict",
    "gather",
    "compile",
)
"""Settings that a resumed run may change. The shards know their data; gathering stays as the run began it."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a run computes, and how fast a plain matmul is there."""

    device: torch.device
    bf16: bool
    rate: float
    """Multiply-accumulates per second of all processes."""


def pretrain(config: PretrainConfig, resume: bool = False) -> Figures:
    """Train a fresh model, or all weights of one of our own types (`config.start`), or go on with an interrupted run;
    returns its results, which are in results.json, too.

    Afterwards `config.output` holds the model and its tokenizer as Hugging Face keeps them. On several processes all of
    them train and the main one writes. Raises ValueError (one line, with the remedy) for settings or data that do not
    fit, or a resume that does not; InterruptedRun after a signal.
    """
    method, spec = config.chosen_method(), None if config.start is not None else Spec.parse(config.size)
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    processes.start(on_cpu)
    with claim(config, resume, SETTINGS_FILE, FREE, begins=("shards",)) as output:
        return _pretrain(config, method, spec, on_cpu, output, resume)


def _pretrain(
    config: PretrainConfig, method: Method, spec: Spec | None, on_cpu: bool, output: Path, resume: bool
) -> Figures:
    """`pretrain`, once the folder is this run's."""
    keep_memory()
    places = Path(config.shards) if config.shards else output / "shards"
    index, tokenizer = make_shards(config.data, places, config.start or config.tokenizer, config.heldout, config.strict)
    samples = config.steps * config.rows_a_step
    rows = Rows(places, index, "train", config.length, seed=config.seed, samples=samples, least=config.rows_a_step)
    log.info("%s tokens to train on, %s held out", f"{index.tokens('train'):,}", f"{index.tokens('heldout'):,}")
    heldout = _heldout_rows(places, index, config, rows)
    if spec is None:
        assert config.start is not None
        model, tokenizer = load_base(config.start, "float32", "cpu")
    else:
        spec = dataclasses.replace(spec, context=max(spec.context, config.length))
        model = fresh(spec, method, tokenizer, config.seed)

    machine = _machine(config, on_cpu)
    identity = {"tokenizer_sha": index.tokenizer, "bf16": machine.bf16}
    if resume:
        _same(output, identity)
    if machine.device.type == "cpu" and machine.bf16:
        model.set_attn_implementation("eager")  # scaled_dot_product_attention's bf16 backward is slow on a CPU
    model.to(machine.device)  # pyright: ignore[reportArgumentType]
    undo = _gather(model, config, rows, machine, output, resume)
    gathers = "on" if undo else "off"
    write_settings(output, {**config_json(config), **identity, "gather": gathers}, SETTINGS_FILE)

    if config.compile:
        compile_pieces(model)
    lesson = NextToken(model, config.seed, config.compile)
    uses_cache = model.config.use_cache
    trainer = _train(model, lesson, rows, heldout, config, machine, resume)
    model.config.use_cache = uses_cache  # a Trainer switches it off, also in config.json
    lesson.close()
    sharded: Any = model if trainer is None else trainer.model
    figures = measure_heldout(sharded, heldout, config.rows_a_step, config.heldout_tokens, machine.bf16)
    if not math.isfinite(figures["loss"]):
        raise ValueError(
            f"the held-out loss is {figures['loss']} after step {config.steps}: no model was written; start again with "
            "a lower --lr"
        )
    state = None if trainer is None else _whole_state(trainer, model)
    if undo is not None:
        undo()
    if processes.is_main():
        results = {**figures, **run_figures(model, config, output, machine.rate), "gather": gathers}
        save_model(model, tokenizer, state, results, output)
        return results
    return figures


def _whole_state(trainer: Trainer, model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights on the main process, tied ones once: gathered from shards, they would come out as two tensors."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    return {k: weight for k, weight in state.items() if k not in model.all_tied_weights_keys}  # pyright: ignore[reportReturnType]


def _train(
    model: PreTrainedModel, lesson: NextToken, rows: Rows, heldout: Rows, config: PretrainConfig, machine: Machine,
    resume: bool,
) -> Trainer | None:  # fmt: skip
    """Train in place; None if a checkpoint of the last step is there already."""
    ledger, output = converted_of(model).ledger, Path(config.output)
    batch, accumulate = processes.share(config.batch, config.accumulate)

    def speed(figures: Figures, seconds: float) -> Figures:
        macs = needed_macs(ledger, figures["cost"], figures["kept"], config.length)
        tokens = samples_of(figures["tokens"], config.length)
        return {"tokens_per_second": tokens / seconds, "mfu": utilisation(macs, tokens, seconds, machine.rate)}

    evaluate = Evaluate(
        model, heldout, config.rows_a_step, config.heldout_tokens, machine.bf16, config.eval_every, output
    )
    return train_in_place(
        model,
        rows,
        config,
        resume,
        [Steps(lesson), Report(lesson, output, speed), evaluate],
        default_collate,
        lesson,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        use_cpu=machine.device.type == "cpu",
        bf16=machine.bf16,
        **(sharding(model, config.method) if config.fsdp else {}),
    )


def _same(output: Path, identity: dict[str, Any]) -> None:
    """ValueError where a run was begun on other tokens or in another precision."""
    before = settings_in(output / SETTINGS_FILE)
    names = {"tokenizer_sha": "with another tokenizer", "bf16": "in another precision (give its --dtype)"}
    for name, now in identity.items():
        if before.get(name, now) != now:
            raise ValueError(f"{output} was begun {names[name]}; resume with the same, or choose another --output")


def _heldout_rows(places: Path, index: Any, config: PretrainConfig, rows: Rows) -> Rows:
    """Held-out rows; the first training rows where there are too few documents to hold one row out."""
    if index.tokens("heldout") >= config.length:
        return Rows(places, index, "heldout", config.length, seed=0)  # mixed: a part of them speaks for all files
    log.warning(
        "only %d tokens are held out, less than a row: the loss is measured on training text; give more data or a "
        "higher --heldout",
        index.tokens("heldout"),
    )
    return Rows(places, index, "train", config.length, samples=min(8, rows.rows))


def _machine(config: PretrainConfig, on_cpu: bool) -> Machine:
    device = torch.device("cpu" if on_cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and not on_cpu)
    rate = torch.tensor(matmul_rate(device, bf16), device=device)
    processes.total([rate])
    return Machine(device, bf16, float(rate))


def _gather(
    model: PreTrainedModel, config: PretrainConfig, rows: Rows, machine: Machine, output: Path, resume: bool
) -> Any:
    """Gather if that was asked for, or pays (before anything is compiled); what undoes it, or None. A resumed run does
    as the first one did."""
    mode = config.gather
    if resume:
        mode = settings_in(output / SETTINGS_FILE).get("gather", mode)
    if mode == "off" or (mode == "auto" and not routed_layers(model)):
        return None
    if mode == "on":
        return gather(model)
    batch, _ = processes.share(config.batch, config.accumulate)
    ids = torch.stack([rows[i % len(rows)]["input_ids"] for i in range(batch)]).to(machine.device)
    return gather(model) if processes.any_process(gather_pays(model, ids, machine.bf16), machine.device) else None
