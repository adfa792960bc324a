"""Where tokens stand, on sentences small enough to check by eye."""

from __future__ import annotations

import pytest
import torch

from depthdial.maps.pieces import Pieces
from depthdial.maps.schema import LEXICAL
from heldout.classes import CONTEXT, PlaceClasses, depth_table


@pytest.fixture
def classes(tiny_tokenizer) -> PlaceClasses:
    return PlaceClasses(tiny_tokenizer)


def found(classes: PlaceClasses, tokenizer, text: str) -> list[tuple[str, set[str]]]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = Pieces(tokenizer)
    return list(zip([pieces.alone(i) for i in ids], classes.document(ids), strict=True))


def test_every_token_is_one_thing(classes, tiny_tokenizer):
    for _, names in found(classes, tiny_tokenizer, "the lazy dog's 12 foxes jump; over\n\nthe <|im_end|>"):
        assert len(names & set(LEXICAL)) == 1
        assert names <= {*LEXICAL, *CONTEXT}


def test_repetition_of_tokens_and_pairs(classes, tiny_tokenizer):
    names = [n for _, n in found(classes, tiny_tokenizer, "fox jumps over fox jumps the fox")]
    fox, jumps = [i for i, (p, _) in enumerate(found(classes, tiny_tokenizer, "a fox jumps fox jumps")) if "fox" in p]
    pieces = found(classes, tiny_tokenizer, "a fox jumps fox jumps")
    first, again = pieces[fox][1], pieces[jumps][1]
    assert "new token" in first and "content word, new" in first
    assert "repeated token" in again and "content word, seen before" in again and "repeated pair" not in again
    assert "repeated pair" in pieces[jumps + 1][1]
    assert all(("repeated token" in n) != ("new token" in n) for n in names)


def test_conversation(classes, tiny_tokenizer):
    turns = [{"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "jumps over the dog"}]
    text = tiny_tokenizer.apply_chat_template(turns, tokenize=False)
    tokens = found(classes, tiny_tokenizer, text)
    assert "".join(p for p, n in tokens if "prompt" in n) == "the quick fox"
    assert "".join(p for p, n in tokens if "answer" in n) == "jumps over the dog<|im_end|>"
    assert sum("start of answer" in n for _, n in tokens) == 3
    assert all(n == {"template"} for p, n in tokens if "template" in n)


def test_rows_of_documents(classes, tiny_tokenizer):
    one = tiny_tokenizer.encode("the fox", add_special_tokens=False)
    ids = torch.tensor([[*one, *one]])
    positions = torch.tensor([[*range(len(one)), *range(len(one))]])
    rows = classes.rows(ids, positions)
    assert list(rows) == [*LEXICAL, *CONTEXT]
    assert not rows["repeated token"].any()  # the second document does not know the first
    assert classes.rows(ids, torch.arange(2 * len(one))[None])["repeated token"][0, len(one) :].all()
    assert sum(rows[name].int() for name in LEXICAL).eq(1).all()  # pyright: ignore[reportAttributeAccessIssue]


def test_depth_by_class():
    layers = torch.tensor([20, 22, 30, 28])
    by_class = {"a": torch.tensor([True, True, False, False]), "none": torch.zeros(4, dtype=torch.bool)}
    (row,) = depth_table(by_class, layers, torch.tensor([0, 1, 2, 3]))
    assert (row.name, row.tokens, row.share, row.layers) == ("a", 2, 0.5, 21.0)
    assert row.low == pytest.approx(21 - 1.96) and row.high == pytest.approx(21 + 1.96)
