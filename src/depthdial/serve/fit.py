"""Whether an order can be taken. Prompt and max_tokens together must fit into the context; what does not is refused, as
the OpenAI API does, and never cut. Budgets must be such as the model can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depthdial.core.dial import PromptBudget
    from depthdial.engine.llm import LLM


class RefusedOrder(ValueError):
    """An order that cannot be taken; the message says why, for the one who asked. param, code: of the OpenAI API's
    errors."""

    def __init__(self, why: str, param: str | None = None, code: str | None = None):
        super().__init__(why)
        self.param, self.code = param, code


def answer_length(
    prompt: int, max_tokens: int | None, default: int, context: int, longest_prompt: int | None, field: str
) -> int:
    """Most tokens of the answer to a prompt of so many tokens.

    max_tokens: the request's own; default: where it names none, then cut to what is left. context: of the model, or of
    the cache if that is smaller; longest_prompt: that this server takes; field: that the prompt came in. Raises
    RefusedOrder with the code that clients shorten by.
    """
    if longest_prompt is not None and prompt > longest_prompt:
        raise RefusedOrder(
            f"this server's maximum context length for prompts is {longest_prompt} tokens, and the prompt has "
            f"{prompt}; shorten it",
            field,
            "context_length_exceeded",
        )
    if prompt + max(1, max_tokens or 0) > context:
        if prompt >= context:
            why = f"the prompt has {prompt} and leaves none to generate; shorten it"
        else:
            parts = f"{prompt} in the prompt and {max_tokens} in max_tokens"
            why = f"the request has {prompt + (max_tokens or 1)}: {parts}; lower either"
        raise RefusedOrder(
            f"the maximum context length here is {context} tokens, and {why}", field, "context_length_exceeded"
        )
    return max_tokens if max_tokens is not None else min(default, context - prompt)


def check_budgets(llm: LLM, budget: float | None, prompt_budget: PromptBudget | None) -> None:
    """Raise RefusedOrder, naming the field, for budgets that the model cannot have; None is the server's own."""
    try:
        llm.offset_of(budget)
    except ValueError as error:
        raise RefusedOrder(str(error), "budget") from None
    try:
        llm.dials(budget, prompt_budget)
    except ValueError as error:
        raise RefusedOrder(str(error), "prompt_budget") from None


def bias_of(llm: LLM, bias: dict[str, float] | None) -> dict[int, float] | None:
    """A request's bias by token. Raises RefusedOrder for a token that the model does not have."""
    tokens = {int(token): value for token, value in (bias or {}).items()}
    most = llm.model.config.get_text_config().vocab_size
    if bad := [token for token in tokens if token >= most]:
        raise RefusedOrder(
            f"logit_bias: {bad[0]} is no token; tokens are whole numbers from 0 to {most - 1}", "logit_bias"
        )
    return tokens or None


def check_least(min_tokens: int, limit: int) -> None:
    """Raise RefusedOrder where an answer of at most `limit` tokens is to have more."""
    if min_tokens > limit:
        raise RefusedOrder(
            f"min_tokens: {min_tokens} are more than the {limit} that this answer may have", "min_tokens"
        )
