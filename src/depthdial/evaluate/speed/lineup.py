"""Who takes part in a speed benchmark, loaded and ready, with the reference that each row's ideal is counted by."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, Unpack

import torch

from depthdial.core.dial import PromptBudget
from depthdial.core.work import Sizes
from depthdial.engine.config import EngineOptions
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.runner import TorchRunner
from depthdial.engine.weights import bytes_each
from depthdial.evaluate.speed.controls import budget_for, random_like
from depthdial.evaluate.speed.huggingface import HuggingFace
from depthdial.evaluate.speed.options import SpeedOptions
from depthdial.evaluate.speed.peers import start_peers
from depthdial.evaluate.speed.prompts import prompt_lengths, prompts
from depthdial.evaluate.speed.rows import Reference
from depthdial.evaluate.speed.subjects import EngineSubject, Kind, SpeedSubject
from depthdial.models import load_base
from depthdial.models.ahead import check_reading
from depthdial.models.converted import converted_of
from depthdial.models.dial import reads_as_written
from depthdial.models.own import is_own
from depthdial.models.stock import stock

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_NARROW: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")


class SpeedLineup:
    """All subjects of a benchmark. Raises ValueError or OSError, one line, for what cannot be loaded."""

    def __init__(self, options: SpeedOptions):
        self.options = options
        self.subjects: list[SpeedSubject] = []
        self.references: dict[str, Reference] = {}
        """By title, for the rows whose ideal is known."""
        self.peers: dict[str, dict[str, Any]] = {}
        """What each peer tells of itself, or why it is missing."""
        self.left_out: dict[str, str] = {}
        """Rows of our own that cannot be here, and why."""
        self._scratch = tempfile.TemporaryDirectory(prefix="depthdial-bench-")
        try:
            for budget in options.prompt_budgets or ():
                check_reading(options.model, budget)  # before weights are read
            self.llm = self._llm(options.plugin)
            self.options = options.fit(self.llm.context)
            self.precision = _SHORT[self.llm.model.dtype]
            self._check()
            self._add_ours()
            self._add_others()
        except BaseException:
            self.close()
            raise

    @property
    def dense(self) -> dict[str, str]:
        """By precision, the title of the dense engine that rows are compared with."""
        return {subject.precision: subject.title for subject in self.subjects if subject.kind == "dense"}

    def close(self) -> None:
        for subject in self.subjects:
            subject.close()
        self._scratch.cleanup()

    def sizes(self, llm: LLM) -> Sizes:
        """Of the numbers that its engine reads."""
        base: int = self.llm.model.dtype.itemsize
        runner: Any = llm.engine.runner
        weight, outside = bytes_each((runner if isinstance(runner, TorchRunner) else runner.plain).spine)
        return Sizes(weight, base, base, self.llm.model.config.get_text_config().hidden_size, outside)

    def _check(self) -> None:
        """What would otherwise fail after minutes of measuring."""
        if self.options.longest > self.llm.context:
            raise ValueError(
                f"the model's context is {self.llm.context} tokens, and {self.options.longest} are to be run; "
                "give less in --prefill, --prompt-tokens or --new-tokens"
            )
        for budget in self._budgets:
            for reading in self._prompt_budgets:
                self.llm.dials(budget, reading)

    @property
    def _budgets(self) -> tuple[float | None, ...]:
        """None is the trained form: all there is of a model that was pre-trained with its routers."""
        if self.llm.plugin is None:
            return (None,) if converted_of(self.llm.model).program.skips else ()
        return self.options.budgets

    @property
    def _prompt_budgets(self) -> tuple[PromptBudget, ...]:
        return self.options.prompt_budgets or (("same",) if reads_as_written(self.llm.model) else (1.0, "same"))

    def _add_ours(self) -> None:
        options = self.options
        self._add("our dense", "dense", self.llm, 1.0, self.precision)
        adaptive = self._add_adaptive("adaptive", self.llm, self.precision)
        if options.lossless:
            params = SamplingParams(budget=1.0, lossless=True)
            self.subjects.append(EngineSubject("lossless", "lossless", self.llm, params, self.precision))
        if adaptive:
            self._add_controls("random", self._random(), adaptive)
            if options.static is not None:
                self._add_controls("static", self._llm(options.static), adaptive)
        for precision in _NARROW:
            self._add_narrow(precision, options.int8 and precision == "int8")

    def _add_narrow(self, precision: Literal["int8", "int4"], adaptive: bool) -> None:
        try:
            llm = self._llm(self.options.plugin, weights=precision)
        except ValueError as reason:
            if adaptive:
                raise
            self.left_out[f"our dense, {precision}"] = str(reason)
            return
        self._add("our dense", "dense", llm, 1.0, precision)
        if adaptive:
            self._add_adaptive("adaptive", llm, precision)

    @property
    def _decoding(self) -> tuple[PromptBudget, tuple[str, ...]]:
        """How prompts are read where texts decode."""
        return self._prompt_budgets[0], ("decode",)

    def _add_adaptive(self, name: str, llm: LLM, precision: str) -> list[EngineSubject]:
        """Rows where texts decode, and one for each way to read a prompt; where that is at a number, what would be
        written after it makes no difference."""
        subjects = [self._add(name, "adaptive", llm, budget, precision, *self._decoding) for budget in self._budgets]
        for reading in self._prompt_budgets:
            for budget in self._budgets if reading == "same" else self._budgets[:1]:
                subjects.append(self._add(name, "adaptive", llm, budget, precision, reading, ("prefill",)))
        return subjects

    def _add_others(self) -> None:
        options = self.options
        base, tokenizer = load_base(options.model, options.dtype, options.device)
        if is_own(base):
            base = stock(base)  # these rows are of the dense model
        if options.peers:  # before Hugging Face's rows change the model's settings of generation
            folder = Path(self._scratch.name) / "model"
            base.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            subjects, self.peers = start_peers(options.peers, options.peer_pythons, folder)
            self.subjects += subjects
        theirs = [HuggingFace(base, self.precision)]
        if options.compiled:
            theirs.append(HuggingFace(base, self.precision, compiled=True))
        self.subjects[:0] = theirs

    def _add(
        self,
        name: str,
        kind: Kind,
        llm: LLM,
        budget: float | None,
        precision: str,
        reading: PromptBudget | None = None,
        kinds: tuple[str, ...] = ("decode", "prefill"),
    ) -> EngineSubject:
        params = SamplingParams(budget=budget, prompt_budget=reading)
        subject = EngineSubject(name, kind, llm, params, precision, kinds=kinds)
        self.subjects.append(subject)
        # an engine with weights of its own leaves the model that it was made from unfit to be asked
        model = self.llm.model if precision in _NARROW else llm.model
        self.references[subject.title] = Reference(model, self.sizes(llm))
        return subject

    def _add_controls(self, name: str, llm: LLM, adaptive: list[EngineSubject]) -> None:
        """One row for each true cost that an adaptive row had where it skips; a dial in steps may give one twice."""
        for kind in ("decode", "prefill"):
            rows = [row for row in adaptive if row.kinds == (kind,) and not isinstance(row.prompt_budget, float)]
            costs = [cost for row in rows if (cost := self._real_cost(row)) is not None]
            reading = self._prompt_budgets[0] if kind == "decode" else "same"
            for budget in dict.fromkeys(budget_for(llm, cost) for cost in costs):
                self._add(name, "control", llm, budget, self.precision, reading, (kind,))

    def _real_cost(self, subject: EngineSubject) -> float | None:
        """The cost a row will have, from one run of the first regime that it takes; None: there is no such regime."""
        regime = next((regime for regime in self.options.regimes if subject.takes(regime)), None)
        if regime is None:
            return None
        texts = prompts(self.llm.tokenizer, prompt_lengths(regime.batch, regime.prompt), self.options.text)
        return subject.run(texts, regime.new_tokens).cost(regime)

    def _random(self) -> LLM:
        options = self.options
        if options.random is not None:
            return self._llm(options.random)
        routed = converted_of(self.llm.model).program
        pair = random_like(routed, options.model, options.dtype, options.device, options.seed)
        batch = max([1, *options.batches])
        return LLM.of(*pair, max_batch=batch, cache_tokens=options.cache_tokens, prefix_cache=False)

    def _llm(self, plugin: str | None, **engine: Unpack[EngineOptions]) -> LLM:
        """Without a prefix cache: every repeat reads its prompts."""
        options = self.options
        engine |= {"max_batch": max([1, *options.batches]), "cache_tokens": options.cache_tokens}
        engine["prefix_cache"] = False
        return LLM(options.model, plugin, None, options.dtype, options.device, options.allow_other_weights, **engine)
