"""From tokens to what the OpenAI API answers: whole objects and streamed chunks, for chats and for completions."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from depthdial.core.written import written
from depthdial.serve.generation import Delta, Generation, Token

Kind = Literal["chat", "text"]
FINISH = {"stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass
class CompletionChoice:
    """One choice as far as it has come."""

    index: int
    tokens: list[Token] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    echo: list[str] = field(default_factory=list)
    """What each token of the prompt adds to the text, where it is given back."""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def texts(self) -> list[str]:
        """What each token adds to it."""
        return [*self.echo, *(token.text for token in self.tokens)]

    def add(self, part: Delta) -> None:
        if part.echo is not None:
            self.echo, logprobs = part.echo
            self.logprobs += logprobs or []
        self.tokens += part.tokens
        self.logprobs += part.logprobs or []
        self.finish = FINISH[part.finish] if part.finish is not None else None


class Completion:
    """Writes one answer. kind: which of the two APIs; depth: add what each token cost; facts: of the engine; budget:
    asked for."""

    def __init__(
        self,
        kind: Kind,
        model: str,
        generation: Generation,
        logprobs: bool,
        depth: bool,
        facts: dict,
        budget: float | None,
    ):
        self.kind: Kind = kind
        self.stop = _stop(facts["stops"], budget)
        self.generation, self.logprobs, self.depth, self.facts = generation, logprobs, depth, facts
        self.choices = [CompletionChoice(i) for i in range(generation.choices)]
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        self._frame = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    def whole(self) -> dict[str, Any]:
        """The answer, once all choices are done."""
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        body = {**self._frame, "object": name, "choices": [self._choice(choice) for choice in self.choices]}
        body["usage"] = self.usage()
        return body | self._whole_depth()

    def first(self) -> list[dict[str, Any]]:
        """Chunks before any token: a chat says who speaks."""
        if self.kind == "text":
            return []
        return [
            self._chunk([{"index": c.index, "delta": {"role": "assistant", "content": ""}, **_OPEN}])
            for c in self.choices
        ]

    def chunk(self, part: Delta) -> dict[str, Any]:
        """New tokens of one choice; to be called once for each part."""
        choice = self.choices[part.choice]
        before = len(choice.text) if self.logprobs and self.kind == "text" else 0
        choice.add(part)
        texts, logprobs = [token.text for token in part.tokens], part.logprobs or []
        if part.echo is not None:
            texts, logprobs = part.echo[0], part.echo[1] or []
        text = "".join(texts)
        entry: dict[str, Any] = {"index": choice.index, **_OPEN, "finish_reason": choice.finish}
        if self.kind == "chat":
            entry["delta"] = {"content": text} if part.tokens else {}
        else:
            entry["text"] = text
        if self.logprobs and logprobs:
            entry["logprobs"] = self._logprobs(texts, logprobs, before)
        if self.depth:
            entry["depth"] = _depth(part.tokens)
            if choice.finish is not None:
                entry["depth"] |= _mean(choice.tokens)
        return self._chunk([entry])

    def last(self) -> dict[str, Any]:
        """The chunk with the usage; it has no choices."""
        return self._chunk([]) | {"usage": self.usage()} | self._whole_depth()

    def usage(self) -> dict[str, Any]:
        prompt = self.generation.prompt_tokens
        count = sum(len(choice.tokens) for choice in self.choices)
        costs = [token.cost for choice in self.choices for token in written(choice.tokens)]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": count,
            "total_tokens": prompt + count,
            "prompt_tokens_details": {"cached_tokens": self.generation.cached_tokens},
            "prompt_cost": self.generation.prompt_cost,
            "cost": round(sum(costs) / len(costs), 5) if costs else None,
            **({} if self.stop is None else {"stop": self.stop}),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._frame, "object": name, "choices": choices}

    def _choice(self, choice: CompletionChoice) -> dict[str, Any]:
        entry: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish, "logprobs": None}
        if self.kind == "chat":
            entry["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            entry["text"] = choice.text
        if self.logprobs:
            entry["logprobs"] = self._logprobs(choice.texts, choice.logprobs, 0)
        if self.depth:
            entry["depth"] = _depth(choice.tokens) | _mean(choice.tokens)
        return entry

    def _whole_depth(self) -> dict[str, Any]:
        if not self.depth:
            return {}
        facts = {name: self.facts[name] for name in ("layers", "always_on")}
        return {"depth": facts | {"prompts": self.generation.prompts}}

    def _logprobs(self, texts: list[str], logprobs: list[Any], offset: int) -> dict[str, Any]:
        if self.kind == "chat":
            return {"content": [_logprob_entry(*logprob) for logprob in logprobs], "refusal": None}
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [_key(*logprob[:2]) for logprob in logprobs],
            "token_logprobs": [logprob[2] for logprob in logprobs],
            "top_logprobs": [
                # the token itself comes last: another of the same name must not stand for it
                None  # a text's first token
                if logprob[3] is None
                else {**{_key(name, data): value for name, data, value in logprob[3]}, _key(*logprob[:2]): logprob[2]}
                for logprob in logprobs
            ],
            "text_offset": offsets,
        }


def _stop(stops: list[float] | None, budget: float | None) -> float | None:
    """The stop that the dial takes for a budget: the next lower one; None where it has none."""
    return None if stops is None or budget is None else max((s for s in stops if s <= budget + 1e-5), default=stops[0])


_OPEN = {"logprobs": None, "finish_reason": None}


def _key(text: str, data: list[int]) -> str:
    """A token's one name: its text, or where it is half a character its bytes, as OpenAI writes them."""
    return text if text.encode() == bytes(data) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _logprob_entry(text: str, data: list[int], logprob: float, likeliest: list[Any]) -> dict[str, Any]:
    top = [{"token": _key(name, of), "logprob": value, "bytes": of} for name, of, value in likeliest]
    return {"token": _key(text, data), "logprob": logprob, "bytes": data, "top_logprobs": top}


def _depth(tokens: list[Token]) -> dict[str, Any]:
    """Per token: its text, layers run, true cost, and which layers (hexadecimal, a bit each; empty: all)."""
    return {
        "tokens": [token.text for token in tokens],
        "token_ids": [token.id for token in tokens],
        "depths": [token.depth for token in tokens],
        "costs": [token.cost for token in tokens],
        "layers_run": [token.layers for token in tokens],
    }


def _mean(tokens: list[Token]) -> dict[str, Any]:
    """Means over the passes over written tokens."""
    if not tokens:
        return {"mean_depth": None, "cost": None}
    ran = written(tokens)
    return {
        "mean_depth": round(sum(token.depth for token in ran) / len(ran), 4),
        "cost": round(sum(token.cost for token in ran) / len(ran), 5),
    }
