"""Our engine as a model of the harness. How it tokenizes, cuts and ends texts is the way of the harness's own `hf`.

Requests are cut into chunks, the longest first; what a chunk gave is kept (`store`). Scored texts run without padding,
what the choices of one question share once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from depthdial.core.dial import Dials
from depthdial.engine.llm import LLM
from depthdial.engine.prefix import first_key
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.score import Ran, Scorer, Text
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.store import Store, key_of

Report = Callable[[int, int], None]
"""Chunks done, chunks in all."""
DEFAULT_TOKENS = 256
"""Most tokens that a task gets which names no number; the harness's own."""
SEED = 1234
_OPTIONS = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"}


@dataclass
class Tally:
    """What ran since the last task began."""

    prompt: Ran = field(default_factory=Ran)
    """Tokens that were given: prompts, and contexts of what was scored."""
    answer: Ran = field(default_factory=Ran)
    """Tokens that were generated, or scored as if they had been; the last one of each text never runs."""
    tokens: int = 0
    """All tokens that were generated or scored."""
    dense: int = 0
    """Those whose logits the untouched base gave: at least the first of each answer whose prompt is read in full."""
    seconds: float = 0.0
    """Of the engine's work, by the clock on the wall."""
    cpu_seconds: float = 0.0
    """Of this process, over all its threads: what a machine that is shared does not change."""

    def add(self, prompt: Sequence[float], answer: Sequence[float], tokens: int, dense: int) -> None:
        self.prompt, self.answer = _sum(self.prompt, prompt), _sum(self.answer, answer)
        self.tokens, self.dense = self.tokens + tokens, self.dense + dense

    def took(self, seconds: Sequence[float]) -> None:
        self.seconds += seconds[0]
        self.cpu_seconds += seconds[1]


class DepthLM(TemplateLM):
    """llm: idle, used by nobody else meanwhile. report: told of progress."""

    def __init__(self, llm: LLM, report: Report = lambda done, total: None):
        super().__init__()
        self.llm, self.tokenizer, self.report = llm, llm.tokenizer, report
        self.setting, self.store, self.tally = Setting.alike(TaskDials()), Store(), Tally()
        self._scorer = Scorer(llm.engine, llm.tokenizer)
        self._plugin = None if llm.plugin is None else llm.plugin.name

    def begin(self, setting: Setting, store: Store) -> Tally:
        """The next task's dials and store; gives the tally that it will fill."""
        self.setting, self.store, self.tally = setting, store, Tally()
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
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer(string, verbose=False, **options)["input_ids"]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        groups, results = [], []
        for _, choices in itertools.groupby(requests, lambda request: (request.task_name, request.doc_id)):
            groups.append([self._text(*self._pair(*request.args)) for request in choices])
        dials = [self.setting.at(i).scored for i in range(len(groups))]
        for scores in self._scores(groups, dials):
            results += [(logprob, greedy) for logprob, greedy in scores]
        return results

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        groups = [[self._text(*pair)] for _, *pair in requests]
        return [scores[0] for scores in self._scores(groups, [self.setting.at(i).scored for i in range(len(groups))])]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            own = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows.append([make_disjoint_window(window) for window in own])
        groups = [[self._text(*window)] for cut in windows for window in cut]
        dials = [self.setting.at(i).whole for i, cut in enumerate(windows) for _ in cut]
        scores = iter(self._scores(groups, dials))
        return [sum(next(scores)[0][0] for _ in cut) for cut in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = [""] * len(requests)
        generations = [self._generation(*request.args) for request in requests]
        order = sorted(range(len(generations)), key=lambda i: (-len(generations[i][0]), i))
        size = 4 * self.llm.max_batch
        chunks = [order[first : first + size] for first in range(0, len(order), size)]
        for number, chunk in enumerate(chunks):
            self.report(number, len(chunks))
            own = [(*generations[i], self.setting.at(i).generated) for i in chunk]
            key = key_of("generate", own)
            results, seconds = self.store.get(key, lambda own=own, key=key: self._generate(own, key))
            self.tally.took(seconds)
            for i, (text, *ran) in zip(chunk, results, strict=True):
                self.tally.add(*ran)
                texts[i] = postprocess_generated_text(text, list(generations[i][1].stops), None)
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

    def _scores(self, groups: list[list[Text]], dials: list[Dials]) -> list[list[tuple[float, bool]]]:
        """Of each text of each group its log-probability, and whether it is the likeliest. dials: of each group."""
        most = self._scorer.most
        order = sorted(range(len(groups)), key=lambda i: (-max(len(text.tokens) for text in groups[i]), i))
        scores: list[list[tuple[float, bool]]] = [[] for _ in groups]
        chunks: list[tuple[Dials, list[tuple[int, list[Text]]]]] = []
        for dial in dict.fromkeys(dials):
            mine = [i for i in order if dials[i] == dial]
            parts = [(i, groups[i][first : first + most]) for i in mine for first in range(0, len(groups[i]), most)]
            chunks += [(dial, parts[cut]) for cut in self._scorer.chunks([group for _, group in parts])]
        for number, (dial, parts) in enumerate(chunks):
            self.report(number, len(chunks))
            own = [group for _, group in parts]
            key = key_of("score", dial, own)
            results, seconds = self.store.get(key, lambda own=own, dial=dial: self._score(own, dial))
            self.tally.took(seconds)
            for (i, _), entries in zip(parts, results, strict=True):
                for logprob, greedy, *ran in entries:
                    self.tally.add(*ran)
                    scores[i].append((logprob, greedy))
        self.report(len(chunks), len(chunks))
        return scores

    def _score(self, groups: list[list[Text]], dials: Dials) -> list[Any]:
        results = self._scorer.score(groups, dials)
        return [
            [
                (score.logprob, score.greedy, score.context, score.scored, len(text.tokens) - text.start, score.dense)
                for text, score in zip(group, scores, strict=True)
            ]
            for group, scores in zip(groups, results, strict=True)
        ]

    def _generation(self, context: str, kwargs: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        """The prompt's tokens, cut at their left, and how to go on."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(kwargs, DEFAULT_TOKENS))
        if unknown := {name for name, value in options.items() if name not in _OPTIONS and value is not None}:
            raise ValueError(
                f"a task asks for {', '.join(sorted(unknown))} in generation, which this engine does not know"
            )
        most = int(options["max_gen_toks"])
        if most >= self.max_length:
            raise ValueError(f"a task asks for {most} tokens; this model's context is {self.max_length}")
        tokens = self.tok_encode(context)[-(self.max_length - most) :]
        stops = handle_stop_sequences(options.get("until"), eos=self.tokenizer.decode(self.eot_token_id))
        sample = bool(options.get("do_sample"))
        return tokens, SamplingParams(
            max_tokens=most,
            temperature=float(options.get("temperature") or 0.0) if sample else 0.0,
            top_p=float(options.get("top_p") or 1.0) if sample else 1.0,
            top_k=int(options.get("top_k") or 0) if sample else 0,
            seed=SEED,
            stop=[stop for stop in stops if stop],
        )

    def _generate(self, generations: list[tuple[list[int], SamplingParams, Dials]], key: str) -> list[Any]:
        """key: pages are shared within a chunk only, so that the chunk alone decides what it gives."""
        first = first_key(self._plugin, key)
        requests = [
            Request(None, tokens, params, SEED + i, dials, params.max_tokens, first)
            for i, (tokens, params, dials) in enumerate(generations)
        ]
        try:
            for request in requests:
                self.llm.engine.submit(request, self.tokenizer)
            while not all(request.done for request in requests):
                self.llm.engine.step()
        finally:
            for request in requests:
                self.llm.engine.cancel(request)
        return [self._entry(request) for request in requests]

    def _entry(self, request: Request) -> tuple[str, Ran, Ran, int, int]:
        """A text, and what its prompt's tokens and its own ran; the last of these never runs. How many it has, and of
        how many the base gave the logits."""
        (row,), count = request.rows, len(request.token_ids)
        sample = row.result()
        if sample.error is not None:
            raise RuntimeError(sample.error)
        prompt = Ran().plus(row.ran_depths[:count], row.ran_costs[:count])
        answer = Ran().plus(row.ran_depths[count:], row.ran_costs[count:])
        dense = sum(row.offset(count - 1 + i) == math.inf for i in range(len(row.token_ids)))
        return sample.text, prompt, answer, len(row.token_ids), dense


def _sum(ran: Ran, more: Sequence[float]) -> Ran:
    return Ran(ran.tokens + int(more[0]), ran.layers + int(more[1]), ran.cost + more[2])
