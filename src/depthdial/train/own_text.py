"""Training on the model's own text: answers that the model in training writes itself, a pool of them at a time.

What a model reads in training is other people's text; what it goes on from when it answers is its own, skipped layers
and all. So a share of the rows are its own answers, at budgets drawn as for other rows, and the teacher is the
untouched base on those very tokens (Agarwal et al., arXiv 2306.13649, without a gradient through the draws).

Pools lie on disk by their number: a run that is resumed reads, or writes again, just what it would have.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from depthdial.core.dial import Curve
from depthdial.engine.llm import LLM
from depthdial.engine.sampling import SamplingParams
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.train import processes
from depthdial.train.budget import BudgetControl
from depthdial.train.config import TrainConfig
from depthdial.train.data import Record
from depthdial.train.encode import Document
from depthdial.train.messages import Message
from depthdial.train.pack import PackedDataset, pack
from depthdial.train.progress import Progress

log = logging.getLogger(__name__)
Messages = Sequence[Message]
FOLDER = "own"
TOKENS = 160
"""Most tokens of an answer."""
SHORTEST = 8
"""Tokens of an answer that is worth a place in a row."""
TEMPERATURES = (0.0, 0.7)
USES = 4
"""How often a row is used before the next pool: to write it costs about as much as to train on it."""
AT_ONCE = 128
PERIODS, RUN = 48, 12
"""A loop is a period of at most so many tokens that has run on for two periods, and for so many tokens."""


def questions(records: Sequence[Record]) -> list[Messages]:
    """What the data asks: conversations up to their last question. Raises ValueError where there is none."""
    conversations = []
    for record in records:
        last = max((i for i, m in enumerate(record.messages or ()) if m["role"] == "user"), default=None)
        if last is not None:
            conversations.append(record.messages[: last + 1])
    if not conversations:
        raise ValueError(
            "--on-policy needs questions that the model can answer, and no row has `messages` with a user's turn (or "
            "`prompt`, `instruction`, `question`); add such rows, or leave --on-policy out"
        )
    return conversations


def bare(messages: Messages) -> str:
    """A conversation that is to be answered, for a model without chat template, as its training rows are written."""
    return "\n\n".join([*(f"{m['role'].capitalize()}: {m['content']}" for m in messages), "Assistant:"])


def before_loop(tokens: Sequence[int]) -> int:
    """How many of the first tokens there are before what is written only repeats itself: the base, too, finds a loop
    likely once it runs, so there is nothing to learn from it."""
    runs = [0] * (PERIODS + 1)
    for i, token in enumerate(tokens):
        for period in range(1, min(PERIODS, i) + 1):
            runs[period] = runs[period] + 1 if tokens[i - period] == token else 0
            if runs[period] >= max(2 * period, RUN):
                return i + 1
    return len(tokens)


class OwnText:
    """Pools of rows that the model wrote.

    model: converted, in training; questions: what it answers; control: its offsets are the dial meanwhile.
    Pool k is written before step k * refresh and used in the period after it, the first in the first one, too: what the
    trainer reads ahead is there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        questions: Sequence[Messages],
        folder: Path,
        control: BudgetControl,
        plugin: Plugin,
        config: TrainConfig,
    ):
        self.model, self.tokenizer, self.questions, self.folder = model, tokenizer, questions, folder
        self.control, self.plugin, self.seed = control, plugin, config.seed
        self.every, self.micro_batches, self.length = config.refresh, config.accumulate, config.length
        share = (1 - config.same_share) * config.on_policy
        needed_tokens = share * min(self.every, config.steps) * config.accumulate * config.batch
        self.count = max(config.batch, math.ceil(needed_tokens / USES))
        """Rows of a pool."""
        self._pool: tuple[int, PackedDataset] | None = None

    def rows(self, index: int) -> PackedDataset:
        """The rows for micro-batch `index` of the run."""
        number = max(0, index // self.micro_batches // self.every - 1)
        if self._pool is None or self._pool[0] != number:
            self._pool = number, PackedDataset.load(self._path(number))
        return self._pool[1]

    def begin(self, step: int) -> None:
        """Before the first step of a run, or of one that is resumed: the trainer reads its rows ahead."""
        now = step // self.every
        for number in sorted({max(0, now - 1), now}):
            if number * self.every < step and not self._path(number).exists():
                log.warning("%s is lost; written again, by the model of step %d", self._path(number), step)
            self._ensure(number)

    def refresh(self, step: int) -> None:
        """Before each optimizer step; writes a pool where one is due and not there. On all processes."""
        if step % self.every == 0:
            self._ensure(step // self.every)

    def _ensure(self, number: int) -> None:
        path = self._path(number)
        if processes.is_main() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write(number).save(path)
        processes.wait()

    def write(self, number: int) -> PackedDataset:
        """A pool, by the model as it is now."""
        documents, target, have = [], self.count * self.length, 0
        with Progress(f"writing own text {number + 1}", target) as progress:
            for document in self._answers(number):
                documents.append(document)
                have += len(document.input_ids)
                progress.advance(len(document.input_ids), len(document.input_ids))
                if have >= target:
                    break
        if not documents:
            raise ValueError("the model in training writes no answer longer than a few tokens; leave --on-policy out")
        pad = self.tokenizer.pad_token_id
        return pack(documents, self.length, self.seed, 0 if pad is None else int(pad))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04}.npz"

    def _answers(self, number: int) -> Iterator[Document]:
        converted, training = converted_of(self.model), self.model.training
        before, converted.plugin = (
            converted.plugin,
            dataclasses.replace(self.plugin, curves={"generated": self._curve()}),
        )
        try:
            llm = LLM.of(self.model, self.tokenizer, budget=1.0)
            draw = random.Random(f"{self.seed}/{number}")
            order = draw.sample(range(len(self.questions)), len(self.questions))
            low, high = float(self.control.grid[0]), float(self.control.grid[-1])
            for begin in range(0, len(order), AT_ONCE):
                prompts, params = [], []
                for i in order[begin : begin + AT_ONCE]:
                    question = self.questions[i]
                    chat = self.tokenizer.chat_template
                    ids = (
                        llm.chat_tokens(question)
                        if chat
                        else self.tokenizer(bare(question), verbose=False)["input_ids"]
                    )
                    budget, temperature = draw.uniform(low, high), draw.choice(TEMPERATURES)
                    if len(ids) + TOKENS <= min(self.length, llm.context):
                        prompts.append(ids)
                        params.append(
                            SamplingParams(
                                max_tokens=TOKENS, budget=budget, temperature=temperature, top_p=1.0, top_k=0, seed=i
                            )
                        )
                for output in llm.generate(prompts, params) if prompts else ():
                    answer = output.token_ids[: before_loop(output.token_ids)]
                    if len(answer) >= SHORTEST:
                        prompt = output.prompt_token_ids
                        target = np.arange(len(prompt) + len(answer)) >= len(prompt)
                        yield Document(np.array([*prompt, *answer], np.int32), target)
        finally:
            converted.plugin = before
            self.model.train(training)

    def _curve(self) -> Curve:
        """The control's offsets as the dial's curve; where two are equal, hardly apart."""
        offsets = (self.control.offsets.double() + torch.arange(len(self.control.offsets)) * 1e-6).tolist()
        return Curve(tuple(offsets), tuple(self.control.grid.double().tolist()), (0.0,) * len(offsets))


class Refresh(TrainerCallback):
    """Lets the model write before the steps at which new text is due."""

    def __init__(self, own: OwnText):
        self.own = own

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.own.begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.own.refresh(state.global_step)
