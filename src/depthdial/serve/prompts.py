"""The tokens of an order's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdial.engine.llm import LLM
from depthdial.serve.fit import RefusedOrder
from depthdial.serve.wire import Message


def order_tokens(llm: LLM, order: Message) -> list[Sequence[int]]:
    """One list for each prompt. Raises ValueError, or what a chat template raises."""
    if "messages" in order:
        return [llm.chat_tokens(order["messages"])]
    return [_tokens(llm, prompt) for prompt in order["prompts"]]


def _tokens(llm: LLM, prompt: Any) -> Sequence[int]:
    if isinstance(prompt, str):
        return llm.tokenizer(prompt, verbose=False)["input_ids"]
    return _beginning(llm.tokenizer) if prompt is None else prompt


def _beginning(tokenizer: Any) -> list[int]:
    """The token before a text that has no prompt."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if token is None:
        raise RefusedOrder("this model has no token that begins a text; give a prompt", "prompt")
    return [token]
