"""What a finished pre-training run leaves: the figures of results.json, and the model's folder."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.whole import sync
from depthdial.models.converted import converted_of
from depthdial.models.gguf import quiet
from depthdial.models.modes import readable
from depthdial.train import processes
from depthdial.train.callbacks import read_metrics
from depthdial.train.heldout import Figures
from depthdial.train.pretrain_config import PretrainConfig
from depthdial.train.settings import METRICS_FILE

RESULTS_FILE = "results.json"
SCRATCH = ".model-"
LAST = 50
"""Steps over which the training loss of the results is averaged."""


def run_figures(model: PreTrainedModel, config: PretrainConfig, output: Path, rate: float) -> Figures:
    """What metrics.jsonl says of the whole run, and the model's sizes. rate: multiply-accumulates per second of a plain
    matmul."""
    lines = read_metrics(output / METRICS_FILE)
    steps = [line for line in lines if "loss" in line]
    converted = converted_of(model)
    return {
        "train_loss": statistics.fmean(line["loss"] for line in steps[-LAST:]),
        "target": converted.method.target,
        "steps": config.steps,
        "tokens": config.steps * config.rows_a_step * config.length,
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps),
        "mfu": statistics.median(line["mfu"] for line in steps),
        "seconds": sum(samples_of(line["tokens"], config.length) / line["tokens_per_second"] for line in steps),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "macs_per_token": converted.ledger.dense,
        "method": config.method,
        "size": config.size,
        "seed": config.seed,
        "processes": processes.world(),
        "matmul_rate": rate,
    }


def samples_of(tokens: float, length: int) -> float:
    """Tokens that were run, from those that were predicted: the first of a row follows nothing."""
    return tokens / (length - 1) * length


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: Any, results: Figures, output: Path
) -> None:
    """The model's folder, whole or not at all; results.json comes last and says that it is there."""
    for leftover in output.glob(f"{SCRATCH}*"):  # by a killed process: the folder is ours alone
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=output))
    try:
        with quiet():
            model.save_pretrained(scratch, state_dict=state)
            tokenizer.save_pretrained(scratch)
        (scratch / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
        readable(scratch)
        files = sorted(scratch.iterdir(), key=lambda path: path.name == RESULTS_FILE)
        for file in files:
            sync(file)
        for file in files:
            os.replace(file, output / file.name)
        sync(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
