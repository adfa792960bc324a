"""Where in a token sequence a chat template wrote, and where the answers are.

Templates leave no marks of this, so the template is rendered once with placeholders; what it writes before a question,
between question and answer, between answer and question, and at the end, is then looked for in the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class ChatMarks:
    """Finds what a chat template wrote. Without a template, or with one that edits contents, it finds nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.opening, self.to_answer, self.to_user, self.closing = _frame(tokenizer) or ([], [], [], [])

    def find(self, ids: Sequence[int]) -> tuple[list[bool], list[int | None]]:
        """Of each token of one conversation: did the template write it; and its place in its answer, None outside.

        The end mark of an answer is the answer's last token. A system message other than the template's own counts as
        part of the first question, its role mark included.
        """
        marks = [False] * len(ids)
        answer: list[int | None] = [None] * len(ids)
        t, place = 0, None
        while t < len(ids) and self.to_answer:
            mark, ends = self._mark(ids, t, place is not None)
            if ends or not mark:
                answer[t] = place
                place = None if ends or place is None else place + 1
            for k in range(1 if ends else 0, mark):
                marks[t + k] = True
            if _at(ids, t, self.to_answer):
                place = 0
            t += max(1, mark)
        return marks, answer

    def _mark(self, ids: Sequence[int], t: int, answering: bool) -> tuple[int, bool]:
        """Tokens of the template's mark that begins at t (0: none), and does its first token end an answer?"""
        if t == 0 and _at(ids, 0, self.opening):
            return len(self.opening), False
        if answering and _at(ids, t, self.to_user):
            return len(self.to_user), True
        if answering and t + len(self.closing) == len(ids) and _at(ids, t, self.closing):
            return len(self.closing), True
        return (len(self.to_answer), False) if _at(ids, t, self.to_answer) else (0, False)


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Token ids that the template writes: before all, from user to answer, from answer to user, at the end."""
    if tokenizer.chat_template is None:
        return None
    holes = [f"\ue000{i}\ue001" for i in range(4)]  # private-use characters: no template knows them
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": hole} for role, hole in zip(roles, holes, strict=True)]
    rest, frame = str(tokenizer.apply_chat_template(turns, tokenize=False)), []
    for hole in holes:
        before, separator, rest = rest.partition(hole)
        if not separator:
            return None
        frame.append(before)
    opening, to_answer, to_user, closing = (
        tokenizer.encode(text, add_special_tokens=False) for text in (*frame[:3], rest)
    )
    return opening, to_answer, to_user, closing


def _at(ids: Sequence[int], t: int, mark: Sequence[int]) -> bool:
    return bool(mark) and list(ids[t : t + len(mark)]) == list(mark)
