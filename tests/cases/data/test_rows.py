"""Files from what users of such tools have: each becomes what its writer meant, or the message says what does not."""

from pathlib import Path

import pytest

from depthdial.train.data import read
from depthdial.train.messages import Message, turn

HERE = Path(__file__).parent
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
REPLY = "<tool_response>\nsunny\n</tool_response>"
SYSTEM: Message = {"role": "system", "content": "Answer in French."}


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("answer-with-streams", turn("How do I print and read in C++?", 'std::cout << "x"; std::cin >> y;')),
        ("answer-with-shifts", turn("What is eight halved, with shifts?", "1<<3>>1")),
        ("answer-with-heading", turn("Sum up.", "It rained all day.\n#### Summary")),
        ("dolly-context", turn("Who wrote it?\n\nAda wrote it in 1843.", "Ada.")),
        ("question-with-context", turn("Ada wrote it in 1843.\n\nWho wrote it?", "Ada.")),
        ("system-beside-messages", [SYSTEM, *turn("Hello", "Bonjour")]),
        ("alpaca-history", [*turn("What is the capital of France?", "Paris."), *turn("And of Italy?", "Rome.")]),
        ("weight-zero", [*turn("2+2?", "Five, I think."), *turn("Sure?", "Four.")]),
        ("roles-of-sharegpt", turn("Hello", "Hi there")),
        ("label-false", turn("Capital of France?", "Paris.")),
        ("indented-code", turn("def f(x):\n    if x:", "        return 1\n    return 0")),
        ("content-parts", turn("Hello", "Hi there")),
        ("prompt-of-messages", turn("Hello", "Hi there")),
        ("tool-turns", [*turn("Weather?", CALL), *turn(REPLY, "It is sunny.")]),
    ],
)
def test_conversations(name: str, messages: list[Message]):
    (record,) = read(HERE / f"{name}.jsonl")
    assert list(record.messages) == messages
    assert record.context == ((1,) if name == "weight-zero" else (0,) if name == "prompt-of-messages" else ())


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("text-with-language-code.jsonl", ["A long article about rivers and the towns beside them."]),
        ("long-number.jsonl", ["fine", "hello"]),
        ("empty-messages-beside-text.jsonl", ["Some words."]),
        ("NOTES.TXT", ["Plain text in a file whose name is in capitals.\n"]),
    ],
)
def test_texts(name: str, texts: list[str]):
    assert [record.text for record in read(HERE / name)] == texts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dolly-context", "dolly-context.jsonl: fields not used: category (first in line 1)"),
        ("text-with-language-code", "text-with-language-code.jsonl: fields not used: code (first in line 1)"),
        ("label-false", "label-false.jsonl: 1 of 2 rows left out: labelled false (1, first in line 2)"),
    ],
)
def test_what_is_not_used_is_named_once(name: str, words: str, caplog: pytest.LogCaptureFixture):
    read(HERE / f"{name}.jsonl")
    assert [text for text in caplog.messages if words in text] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deep-unused-field", r"deep-unused-field\.jsonl line 1: .* nested too deeply"),
        ("half-a-surrogate", r"half-a-surrogate\.jsonl line 2: completion holds '\\ud83d', half a character"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, words: str):
    with pytest.raises(ValueError, match=words):
        read(HERE / f"{name}.jsonl", strict=True)
