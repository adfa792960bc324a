"""Our engine as a model of the harness. How it tokenizes, cuts and ends texts is the way of the harness's own `hf`.

Requests are cut into chunks, the longest first; what a chunk gave is kept (`store`). Scored texts run without padding,
what the choices of one question share once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from depthdial.engine.dials import Dials
from depthdial.engine.llm import LLM
from depthdial.engine.prefix import first_key
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.score import Ran, Scorer, Text
from depthdial.evaluate.equal_cost import Knob, Mix
from depthdial.evaluate.store import Store, key_of
from depthdial.models.dial import offset_for

Report = Callable[[int, int], None]
"""Chunks done, chunks in all."""
GENERATED = 256
"""Most tokens that a task gets which names no number; the harness's own."""
SEED = 1234
_KNOWN = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"}


class Dial(NamedTuple):
    """Logit offsets: of texts that are scored, and of texts that are generated. `inf` is the untouched base."""

    text: float = math.inf
    generated: float = math.inf

    @classmethod
    def of(cls, model: Any, knob: Knob) -> Dial:
        """At a budget; of a mix of two that a dial in steps has at the nearer one, since a task has one dial."""
        if isinstance(knob, Mix):
            knob = knob.high if knob.share >= 0.5 else knob.low
        return cls(*(offset_for(model, knob, kind) for kind in ("text", "generated")))


@dataclass
class Tally:
    """What ran since the last task began."""

    prompt: Ran = field(default_factory=Ran)
    """Tokens that were given: prompts, and contexts of what was scored."""
    answer: Ran = field(default_factory=Ran)
    """Tokens that were generated, or scored as if they had been."""
    seconds: float = 0.0
    """Of the engine's work, by the clock on the wall."""
    cpu_seconds: float = 0.0
    """Of this process, over all its threads: what a machine that is shared does not change."""

    def add(self, prompt: Sequence[float], answer: Sequence[float]) -> None:
        self.prompt, self.answer = _sum(self.prompt, prompt), _sum(self.answer, answer)

    def took(self, seconds: Sequence[float]) -> None:
        self.seconds += seconds[0]
        self.cpu_seconds += seconds[1]


class DepthLM(TemplateLM):
    """llm: idle, used by nobody else meanwhile. report: told of progress."""

    def __init__(self, llm: LLM, report: Report = lambda done, total: None):
        super().__init__()
        self.llm, self.tokenizer, self.report = llm, llm.tokenizer, report
        self.dial, self.store, self.tally = Dial(), Store(), Tally()
        self._scorer = Scorer(llm.engine, llm.tokenizer)
        self._plugin = None if llm.plugin is None else llm.plugin.name

    def begin(self, dial: Dial, store: Store) -> Tally:
        """The next task's dial and store; gives the tally that it will fill."""
        self.dial, self.store, self.tally = dial, store, Tally()
        return self.tally

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def max_length(self) -> int:
        return self.llm.context

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        asked = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer(string, verbose=False, **asked)["input_ids"]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        groups, found = [], []
        for _, asked in itertools.groupby(requests, lambda request: (request.task_name, request.doc_id)):
            groups.append([self._text(*self._pair(*request.args)) for request in asked])
        for scores in self._scored(groups):
            found += [(logprob, greedy) for logprob, greedy in scores]
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [scores[0] for scores in self._scored([[self._text(*pair)] for _, *pair in requests])]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows.append([make_disjoint_window(window) for window in cut])
        scores = iter(self._scored([[self._text(*window)] for cut in windows for window in cut]))
        return [sum(next(scores)[0][0] for _ in cut) for cut in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = [""] * len(requests)
        asked = [self._generation(*request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda i: (-len(asked[i][0]), i))
        size = 4 * self.llm.max_batch
        chunks = [order[first : first + size] for first in range(0, len(order), size)]
        for number, chunk in enumerate(chunks):
            self.report(number, len(chunks))
            own = [asked[i] for i in chunk]
            key = key_of("generate", self.dial.generated, own)
            results, seconds = self.store.get(key, lambda own=own, key=key: self._generate(own, key))
            self.tally.took(seconds)
            for i, (text, prompt, answer) in zip(chunk, results, strict=True):
                self.tally.add(prompt, answer)
                texts[i] = postprocess_generated_text(text, list(asked[i][1].stops), None)
        self.report(len(chunks), len(chunks))
        return texts

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As `TemplateLM.loglikelihood` does it."""
        if context:
            return self._encode_pair(context, continuation)
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens[:1] == [self.prefix_token_id]:
            return tokens[:1], tokens[1:]
        return [self.prefix_token_id], tokens

    def _text(self, context: list[int], continuation: list[int]) -> Text:
        """Cut at its left where it is too long. ValueError where nothing is to be scored, or more than fits."""
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a task asks for the likelihood of {len(continuation)} tokens; this model can tell it of 1 to "
                f"{self.max_length}"
            )
        tokens = [*context, *continuation][-(self.max_length + 1) :]
        return Text(tokens, len(tokens) - len(continuation))

    def _scored(self, groups: list[list[Text]]) -> list[list[tuple[float, bool]]]:
        """Of each text of each group its log-probability, and whether it is the likeliest."""
        most = self._scorer.most
        order = sorted(range(len(groups)), key=lambda i: (-max(len(text.tokens) for text in groups[i]), i))
        parts = [(i, groups[i][first : first + most]) for i in order for first in range(0, len(groups[i]), most)]
        chunks = list(self._scorer.chunks([group for _, group in parts]))
        scores: list[list[tuple[float, bool]]] = [[] for _ in groups]
        for number, cut in enumerate(chunks):
            self.report(number, len(chunks))
            own = [group for _, group in parts[cut]]
            key = key_of("score", self.dial.text, own)
            results, seconds = self.store.get(key, lambda own=own: self._score(own))
            self.tally.took(seconds)
            for (i, _), told in zip(parts[cut], results, strict=True):
                for logprob, greedy, context, scored in told:
                    self.tally.add(context, scored)
                    scores[i].append((logprob, greedy))
        self.report(len(chunks), len(chunks))
        return scores

    def _score(self, groups: list[list[Text]]) -> tuple[list[Any], list[float]]:
        began = _now()
        found = self._scorer.score(groups, Dials(self.dial.text))
        told = [[(score.logprob, score.greedy, score.context, score.scored) for score in scores] for scores in found]
        return told, _since(began)

    def _generation(self, context: str, told: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        """The prompt's tokens, cut at their left, and how to go on."""
        asked: dict[str, Any] = dict(normalize_gen_kwargs(told, GENERATED))
        if unknown := {name for name, value in asked.items() if name not in _KNOWN and value is not None}:
            raise ValueError(
                f"a task asks for {', '.join(sorted(unknown))} in generation, which this engine does not know"
            )
        most = int(asked["max_gen_toks"])
        if most >= self.max_length:
            raise ValueError(f"a task asks for {most} tokens; this model's context is {self.max_length}")
        tokens = self.tok_encode(context)[-(self.max_length - most) :]
        stops = handle_stop_sequences(asked.get("until"), eos=self.tokenizer.decode(self.eot_token_id))
        drawn = bool(asked.get("do_sample"))
        return tokens, SamplingParams(
            max_tokens=most,
            temperature=float(asked.get("temperature") or 0.0) if drawn else 0.0,
            top_p=float(asked.get("top_p") or 1.0) if drawn else 1.0,
            top_k=int(asked.get("top_k") or 0) if drawn else 0,
            seed=SEED,
            stop=[stop for stop in stops if stop],
        )

    def _generate(self, asked: list[tuple[list[int], SamplingParams]], key: str) -> tuple[list[Any], list[float]]:
        """key: pages are shared within a chunk only, so that the chunk alone decides what it gives."""
        began, offset = _now(), self.dial.generated
        first = first_key(self._plugin, offset, key)
        requests = [
            Request(None, tokens, params, SEED + i, Dials(offset), params.max_tokens, first)
            for i, (tokens, params) in enumerate(asked)
        ]
        try:
            for request in requests:
                self.llm.engine.submit(request, self.tokenizer)
            while not all(request.done for request in requests):
                self.llm.engine.step()
        finally:
            for request in requests:
                self.llm.engine.cancel(request)
        return [self._told(request) for request in requests], _since(began)

    def _told(self, request: Request) -> tuple[str, Ran, Ran]:
        """A text, and what its prompt's tokens and its own ran; the last of these never runs."""
        (row,), count = request.rows, len(request.token_ids)
        sample = row.result()
        if sample.error is not None:
            raise RuntimeError(sample.error)
        prompt = Ran().plus(row.ran_depths[:count], row.ran_costs[:count])
        return sample.text, prompt, Ran().plus(row.ran_depths[count:], row.ran_costs[count:])


def _now() -> list[float]:
    return [time.perf_counter(), time.process_time()]


def _since(began: list[float]) -> list[float]:
    return [now - then for now, then in zip(_now(), began, strict=True)]


def _sum(ran: Ran, more: Sequence[float]) -> Ran:
    return Ran(ran.tokens + int(more[0]), ran.layers + int(more[1]), ran.cost + more[2])
