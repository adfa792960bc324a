"""One training run from files to a plug-in: read, convert, fit, train, calibrate the dial, save."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from depthdial.core.dial import Curve
from depthdial.core.layers import Part
from depthdial.core.method import Method
from depthdial.models.ahead import config_ahead
from depthdial.models.base import load_base
from depthdial.models.branches import branches_of
from depthdial.models.calibration import POINTS, BaseProbe, Batch, Heldout, curve_of
from depthdial.models.checkpoint import Plugin, attach, cast_parts, save
from depthdial.models.checkpoint import read as read_plugin
from depthdial.models.convert import take_on
from depthdial.models.converted import Converted, converted_of
from depthdial.models.fingerprint import fingerprint
from depthdial.models.halves import Halves
from depthdial.models.own import is_own, method_for
from depthdial.train import processes
from depthdial.train.budget import RAMP, BudgetControl
from depthdial.train.card import training_card
from depthdial.train.config import TrainConfig
from depthdial.train.data import digest, holdout, read
from depthdial.train.fit import fit_adapters
from depthdial.train.foresee import bounds, check_prompt_reading, foresee
from depthdial.train.generated import generated_curve
from depthdial.train.lesson import Lesson
from depthdial.train.machine import compile_pieces, keep_memory
from depthdial.train.mix import Kind, Mix
from depthdial.train.own_text import FOLDER, OwnText, Refresh, questions
from depthdial.train.pack import PackedDataset, prepare
from depthdial.train.progress import Progress
from depthdial.train.settings import claim, config_json, write_settings
from depthdial.train.start import take_over
from depthdial.train.trainer import run_trainer

log = logging.getLogger(__name__)
SETTINGS_FILE = "train.json"
FREE = ("output", "save_every", "device", "compile", "heldout_tokens", "generated_tokens", "strict")
"""Settings that a resumed run may change: they do not touch what is learned."""


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Run a training from start to plug-in, or go on with an interrupted one; returns the plug-in's folder.

    On several processes all of them train and the main one (`processes.is_main`) measures and saves.
    Raises ValueError (one line, with the remedy) for bad data, models, methods, budgets, or a resume that does not fit.
    """
    method = method_for(config_ahead(config.model), config.method, config.fields)
    if not method.frozen:
        raise ValueError(f"{config.method} trains the base, too: use `depthdial pretrain --method {config.method} ...`")
    foresee(config, method)
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.device.startswith("cuda:") and config.device != "cuda:0":
        raise ValueError(
            f"the Trainer works on the first GPU in sight, not on {config.device}; set CUDA_VISIBLE_DEVICES="
            f"{config.device.removeprefix('cuda:')} and leave --device out"
        )
    processes.start(on_cpu)
    with claim(config, resume, SETTINGS_FILE, FREE, begins=("rows", FOLDER)) as output:
        return _train(config, method, on_cpu, output, resume)


def _train(config: TrainConfig, requested: Method, on_cpu: bool, output: Path, resume: bool) -> Path:
    """`train`, once the folder is this run's."""
    keep_memory()
    every = read(config.data, drop=config.drop_sources, strict=config.strict)
    identity = {"records": digest(every)}
    if resume:
        _same_records(output, identity["records"], config)
    # scaled_dot_product_attention's bf16 backward is some twenty times slower than plain attention on a CPU
    model, tokenizer = load_base(
        config.model, config.dtype, processes.own_gpu(config.device, on_cpu), "eager" if on_cpu else None
    )
    if model.dtype == torch.float16:  # of what it was saved in
        raise ValueError("training runs in bfloat16 or float32, and this base is in float16; give --dtype bfloat16")
    records, heldout_records = holdout(every, 0.01, config.seed)
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    targets = "all" if config.objective == "distill" else "assistant"
    options: dict[str, Any] = {"seed": config.seed, "cache_dir": output / "rows", "vocabulary": vocabulary}
    options["strict"] = config.strict
    prompts = questions(records) if config.on_policy else []
    full = same = None
    if config.prompt_budget != "same" and config.same_share < 1:
        full = prepare(records, tokenizer, config.length, full=True, **options)
    if full is None or config.same_share:
        same = prepare(records, tokenizer, config.length, targets=targets, **options)
    rows = same if full is None else full
    assert rows is not None
    checks = prepare(heldout_records or records[:8], tokenizer, config.length, targets="all", **options)
    log.info("%s", rows.stats)
    check_batches = list(_batches(checks, config, model.device))

    write_settings(output, {**config_json(config), **identity}, SETTINGS_FILE)
    base = fingerprint(model)
    method = requested if is_own(model) else requested.calibrate(BaseProbe(model, check_batches), log.info)
    torch.manual_seed(config.seed)  # the parts' first values belong to the run, not to what ran before it
    take_on(model, method)
    check_prompt_reading(config, model)
    if config.compile:
        compile_pieces(model)
    learns = any(parameter.requires_grad for parameter in model.parameters())
    if config.start_from is not None:
        take_over(model, config.start_from)
    elif learns and not resume:
        errors = fit_adapters(model, _forever(rows, config, model.device), config.fit_steps, config.fit_lr)
        log.info("relative error of the fitted adapters: %s", {k: round(v, 2) for k, v in errors.items()})
    control = None
    if learns:
        control = control_for(model, config, check_batches)
        lesson = Lesson(
            model,
            config.objective,
            control,
            config.compile,
            config.divergence,
            config.copies,
            config.shortlist or None,
        )
        own = None
        if config.on_policy:
            assert control is not None
            own = OwnText(
                model, tokenizer, prompts, output / FOLDER, control, Plugin(output.name, method, base), config
            )
        more = [] if own is None else [Refresh(own)]
        run_trainer(lesson, row_mix(config, full, same, own), config, resume, more)
    else:
        log.info("this method has nothing to train here: its dial is measured as it is")
    if not processes.is_main():
        return output

    if control is not None and config.budget is not None:
        _centre(converted_of(model), control, config.budget)
    cast_parts(model, torch.bfloat16)
    plugin = Plugin(
        output.name,
        method,
        base,
        training=_history(config, rows, control, learns),
        prompt_budget=config.prompt_budget if learns else None,
    )
    save(model, output, plugin)  # the training is safe from here on; --resume measures the dial again

    heldout = Heldout(model, check_batches, config.compile)
    curve = _curve_with_bar(model, heldout, config)
    plugin = dataclasses.replace(
        plugin, curves={"text": curve}, recommended=_recommended_budget(curve, config.budget, heldout)
    )
    save(model, output, plugin, training_card(plugin))
    if config.generated_tokens:
        fresh, _ = load_base(config.model, config.dtype, config.device)  # without the compiled pieces
        attach(fresh, output)
        generated = generated_curve(
            fresh, tokenizer, heldout_records or records[:8], config.generated_tokens, config.seed
        )
        save(
            model,
            output,
            dataclasses.replace(plugin, curves={"text": curve, "generated": generated}),
            training_card(plugin),
        )
    return output


def row_mix(config: TrainConfig, full: PackedDataset | None, same: PackedDataset | None, own: OwnText | None) -> Mix:
    """The run's micro-batches. full: rows whose prompts are read in full; same: rows in the papers' form."""
    share = config.same_share if full is not None else 1.0
    kinds = [Kind.fixed(same, share, read_in_full=False)] if same is not None and share else []
    if full is not None and config.on_policy < 1:
        kinds.append(Kind.fixed(full, (1 - share) * (1 - config.on_policy), read_in_full=True))
    if own is not None:
        kinds.append(Kind(own.rows, (1 - share) * config.on_policy, read_in_full=True))
    parts, _ = processes.parts(config.batch, config.accumulate)
    return Mix(kinds, config.batch, config.steps * config.accumulate, config.seed, parts)


def _same_records(output: Path, now: str, config: TrainConfig) -> None:
    """ValueError where a run was begun on other rows than these."""
    if json.loads((output / SETTINGS_FILE).read_text()).get("records", now) != now:
        raise ValueError(
            f"{output} was begun on other data: rows of {', '.join(config.data)} changed since; resume with the same "
            "rows, or choose another --output"
        )


def control_for(model: PreTrainedModel, config: TrainConfig, batches: list[Batch]) -> BudgetControl | None:
    """The control that holds the run's budgets; None for training with the method's own loss, and where all exits of a
    method are trained at once."""
    converted = converted_of(model)
    if config.budget is None or branches_of(model, Halves(model)) is not None:
        return None
    floor = converted.ledger.floor
    low, high = bounds(config, config.budget, floor)
    starts = [part.start for part in _parts(converted) if part.start is not None]
    if starts and config.start_from is None:
        return BudgetControl(low, high, floor, start=sum(starts) / len(starts))
    start = read_plugin(config.start_from) if config.start_from is not None else None
    curves = start.curves if start is not None and type(start.method) is type(converted.method) else {}
    # nothing to learn about the offsets, or learned before
    curve = curves.get("text") or curve_of(model, Heldout(model, batches[:1]).measure)
    ramp = RAMP if config.start_from is None else 0.0
    return BudgetControl(
        low, high, floor, offsets=lambda b: torch.tensor([curve.offset(x) for x in b.tolist()]), ramp=ramp
    )


def _curve_with_bar(model: PreTrainedModel, heldout: Heldout, config: TrainConfig) -> Curve:
    """The dial's curve, with progress: some minutes for a real model on a CPU."""
    with Progress("measuring the dial", POINTS) as progress:

        def measure(offset: float) -> tuple[float, float]:
            cost, kl = heldout.measure(offset)
            progress.advance(config.heldout_tokens, cost=cost, kl=kl)
            return cost, kl

        return curve_of(model, measure)


def _history(config: TrainConfig, rows: PackedDataset, control: BudgetControl | None, trains: bool) -> dict[str, Any]:
    """What a plug-in tells of its training: names of files, never places on somebody's disk; the budgets that rows were
    trained at, null where there were none; no steps where nothing was trained."""
    settings = config_json(config)
    ends = (None, None) if control is None else (float(control.grid[0]), float(control.grid[-1]))
    settings["lowest"], settings["highest"] = (end if end is None else round(end, 3) for end in ends)
    if not trains:
        settings |= {"steps": 0, "fit_steps": 0}
    for name in ("model", "output", "start_from"):
        settings[name] = (
            Path(settings[name]).name if settings[name] and Path(settings[name]).exists() else settings[name]
        )
    return {**settings, "data": [Path(name).name for name in config.data], "rows": dataclasses.asdict(rows.stats)}


def _batches(rows: PackedDataset, config: TrainConfig, device: torch.device) -> Iterator[Batch]:
    """Held-out rows in batches of equal size (a compiled model likes one shape), about as many as are asked for."""
    size = min(config.batch, len(rows))
    loader = DataLoader(rows, batch_size=size, shuffle=True, generator=_generator(config.seed), drop_last=True)
    most = max(1, config.heldout_tokens // config.length // size)
    yield from (_to_device(batch, device) for batch in itertools.islice(loader, most))


def _forever(rows: PackedDataset, config: TrainConfig, device: torch.device) -> Iterator[Batch]:
    """Training rows in batches, epoch after epoch, in an order of their own."""
    size, order = config.batch, _generator(config.seed + 1)
    loader = DataLoader(rows, batch_size=size, shuffle=True, generator=order, drop_last=True)
    if not len(loader):
        raise ValueError(f"the data fills {len(rows)} rows, less than a batch of {size}; give more, or a lower --batch")
    while True:
        yield from (_to_device(batch, device) for batch in loader)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _centre(converted: Converted, control: BudgetControl, budget: float) -> None:
    """Move the offset of the recommended budget into the gates' biases: offset 0 becomes the trained method."""
    offset = float(control.offset(torch.tensor([budget], device=control.grid.device)))
    for part in _parts(converted):
        part.shift(offset)


def _parts(converted: Converted) -> Iterator[Part]:
    for unit in converted.routed.values():
        yield from (part for part in unit.parts.values() if isinstance(part, Part))


def _recommended_budget(curve: Curve, budget: float | None, heldout: Heldout) -> float:
    """The budget asked for in training, if the curve reaches it; what offset 0 costs otherwise."""
    if budget is not None and budget >= curve.floor:
        return budget
    return round(heldout.measure(0.0)[0], 3)
