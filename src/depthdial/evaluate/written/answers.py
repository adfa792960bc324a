"""Answers to prompts, and what the untouched base says of them; kept chunk by chunk, so that a run can go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from depthdial.core.dial import Dials, PromptBudget
from depthdial.engine.llm import LLM, RequestOutput, SamplingParams
from depthdial.engine.score import Scorer, Text
from depthdial.evaluate.store import Store, key_of

Report = Callable[[int, int], None]
"""Chunks done, chunks in all."""


@dataclass(frozen=True)
class Answer:
    """What was written to one prompt."""

    text: str
    token_ids: list[int]
    """With the one that ended it."""
    ended: bool
    """By an end token, not for want of room."""
    prompt_tokens: int
    prompt_cost: float
    """Sum over the prompt's tokens of their true cost relative to dense."""
    passes: int
    """Over what was written: the first token comes from the pass over the prompt's last one, which is read, and the
    last token never runs. Of a text of one token the pass that gave it."""
    cost: float
    """Sum over these."""
    logprob: float = math.nan
    """Nats, of all its tokens, by the untouched base that reads prompt and answer."""


@dataclass(frozen=True)
class PromptRequest:
    """One prompt to be answered at budgets of its own."""

    ids: list[int]
    budget: float
    prompt_budget: PromptBudget | None


class Writer:
    """Writes greedily with `llm`, up to `max_tokens` a prompt. judge: an idle engine over the untouched base's own
    weights; its answers are scored at full depth."""

    def __init__(self, llm: LLM, judge: LLM, max_tokens: int, report: Report = lambda done, total: None):
        self.llm, self.max_tokens, self.report = llm, max_tokens, report
        self._scorer = Scorer(judge.engine, judge.tokenizer)

    def write(self, requests: Sequence[PromptRequest], store: Store) -> tuple[list[Answer], float]:
        """One answer for each prompt, not scored yet, and the seconds of the engine's work."""
        size, answers, total = self.llm.max_batch, [], 0.0
        cuts = [slice(first, first + size) for first in range(0, len(requests), size)]
        for cut in self._with_report(cuts):
            own = requests[cut]
            key = key_of("write", self.max_tokens, own)
            results, seconds = store.get(key, lambda own=own: self._write(own))
            answers += [Answer(**data) for data in results]
            total += seconds[0]
        return answers, total

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], store: Store) -> list[Answer]:
        """The same with `logprob`. ValueError where the base's logits are not finite."""
        groups = [[Text([*ids, *answer.token_ids], len(ids))] for ids, answer in zip(prompts, answers, strict=True)]
        logprobs: list[float] = []
        for cut in self._with_report(list(self._scorer.chunks(groups))):
            own = groups[cut]
            results, _ = store.get(key_of("score", own), lambda own=own: self._score(own))
            logprobs += results
        return [replace(answer, logprob=logprob) for answer, logprob in zip(answers, logprobs, strict=True)]

    def _with_report(self, cuts: Sequence[slice]) -> Iterator[slice]:
        for number, cut in enumerate(cuts):
            self.report(number, len(cuts))
            yield cut
        self.report(len(cuts), len(cuts))

    def _write(self, requests: Sequence[PromptRequest]) -> list[Any]:
        params = [
            SamplingParams(self.max_tokens, temperature=0.0, budget=one.budget, prompt_budget=one.prompt_budget)
            for one in requests
        ]
        outputs = self.llm.generate([one.ids for one in requests], params)
        return [asdict(answer_of(output)) for output in outputs]

    def _score(self, groups: Sequence[Sequence[Text]]) -> list[float]:
        return [score.logprob for (score,) in self._scorer.score(groups, Dials(math.inf))]


def answer_of(output: RequestOutput) -> Answer:
    """What an engine gave. RuntimeError where its pass failed."""
    if output.error is not None:
        raise RuntimeError(output.error)
    sample = output.samples[0]
    costs = [piece.cost for piece in sample.pieces]
    costs = costs[1:] or costs
    return Answer(
        text=sample.text,
        token_ids=sample.token_ids,
        ended=sample.finish_reason == "stop",
        prompt_tokens=len(output.prompt_token_ids),
        prompt_cost=output.prompt_cost * len(output.prompt_token_ids),
        passes=len(costs),
        cost=sum(costs),
    )
