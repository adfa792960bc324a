"""Token ids that are to be mapped, and which of them are an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from depthdial.maps.chat_marks import ChatMarks
from depthdial.models.chat import ChatTemplate


@dataclass(frozen=True)
class MapText:
    """A text as tokens. Raises ValueError for one without tokens, and for marks that do not fit them."""

    ids: Sequence[int]
    generated: Sequence[bool]
    """Of each token: does it belong to an answer?"""
    id: str
    task: str = "text"
    group: str = ""
    """Texts that share material have one group; "" is a group of its own."""
    forced: bool = False
    """Were the answers given instead of drawn from the model?"""

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"text {self.id!r} has no tokens; give at least one")
        if len(self.ids) != len(self.generated):
            raise ValueError(f"text {self.id!r} has {len(self.ids)} tokens but {len(self.generated)} marks")


def conversation_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], id: str, task: str = "chat"
) -> MapText:
    """A conversation in the tokenizer's chat template; the tokens of its answers (with the mark that ends them) are
    marked as generated. ValueError where there is no template or no message."""
    if not tokenizer.chat_template:
        raise ValueError("this model has no chat template; give its texts as they are")
    if not messages:
        raise ValueError(f"conversation {id!r} has no messages")
    ids = ChatTemplate(tokenizer).ids(messages)
    _, answer = ChatMarks(tokenizer).find(ids)
    return MapText(ids, [place is not None for place in answer], id, task, forced=True)
