"""Every row shape gives the conversation it should; what a shape does not use is named."""

import pytest

from depthdial.train.messages import LeftOut, Talk
from depthdial.train.shapes import SHAPES, Fields, fit, turn

# One row a shape, in the order of SHAPES, with what it must become.
EXAMPLES = [
    ({"messages": turn("Hi", "Hello")}, turn("Hi", "Hello")),
    (
        {"prompt": "Is ice cold?", "rationale": "Ice is frozen water.", "answer": "yes"},
        turn("Is ice cold?", "Ice is frozen water. The answer is yes."),
    ),
    ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, turn("Add.\n\n2 and 3", "5")),
    ({"prompt": "2 + 3 =", "completion": "5"}, turn("2 + 3 =", "5")),
    (
        {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n24+48 = <<24+48=72>>72.\n#### 72"},
        turn("How many?", "48/2 = 24 clips.\n24+48 = 72.\nThe answer is 72."),
    ),
    (
        {"command": "ls", "description": "List files.", "examples": [{"task": "All", "command": "ls -a"}]},
        turn("How do I use the `ls` command?", "List files.\n\n- All:\n  `ls -a`"),
    ),
    ({"text": "Add two numbers.", "code": "a + b", "task_id": 1}, turn("Add two numbers.", "a + b")),
    ({"text": "Once upon a time.", "source": "tales"}, "Once upon a time."),
]


def said(content) -> object:
    return content.messages if isinstance(content, Talk) else content


def fitted(row: dict) -> object:
    found = fit(row)
    return None if found is None else said(found.content)


def unused(row: dict) -> set[str]:
    found = fit(row)
    assert found is not None
    return set(found.unused)


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=[s.fields for s in SHAPES])
def test_each_shape_adapts_its_row_and_no_earlier_shape_takes_it(number: int):
    row, expected = EXAMPLES[number]
    assert said(SHAPES[number].adapt(Fields(row))) == expected
    assert fitted(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": None, "response": "5"}, "Add."),
        ({"prompt": "Say five", "response": "5"}, "Say five"),
        ({"question": "Say five", "response": "5"}, "Say five"),
        ({"conversations": [{"from": "human", "value": "Say five"}, {"from": "gpt", "value": "5"}]}, "Say five"),
        (
            {"conversation": [{"role": "User:", "content": "Say five"}, {"role": "ASSISTANT", "content": "5"}]},
            "Say five",
        ),
        ({"instruction": "Say", "context": "five", "response": "5"}, "Say\n\nfive"),
        ({"instruction": "Mend.", "input": "    x = 1\n  y", "output": "5"}, "Mend.\n\n    x = 1\n  y"),
        ({"prompt": "Say?", "context": "five", "completion": "5"}, "five\n\nSay?"),
        ({"prompt": "Say five", "completion": turn("", "5")[1:]}, "Say five"),
    ],
)
def test_other_field_names_of_the_same_shape(row: dict, expected: str):
    assert fitted(row) == turn(expected, "5")
    assert not unused(row)


def test_a_rationale_without_full_stop_is_followed_by_a_new_line():
    row = {"prompt": "?", "rationale": "5 * 15 = 75", "answer": "(C)"}
    assert fitted(row) == turn("?", "5 * 15 = 75\nThe answer is (C).")


def test_an_answer_of_more_than_a_few_words_is_put_into_no_sentence():
    code = "def double(x):\n    return 2 * x"
    row = {"prompt": "Write it.", "rationale": "Twice the number.", "answer": code}
    assert fitted(row) == turn("Write it.", f"Twice the number.\n\n{code}")


@pytest.mark.parametrize(
    "answer",
    [
        'cout << "x"; cin >> y;',
        "1<<3>>1",
        "<<3=3>>3 is how GSM8K writes it.",
        "<<EOF\ntext = 1\nEOF",
        "It rained.\n#### Summary",
        "It rained.\n#### 2. Summary",
        "It rained all day.\n#### 1843",
        "#### 5\nThen x << 5.",
    ],
)
def test_the_answer_of_a_question_stays_as_it_is(answer: str):
    assert fitted({"question": "?", "answer": answer}) == turn("?", answer)


@pytest.mark.parametrize(
    ("answer", "spoken"),
    [
        ("80 000 + 20 000 = 100 000.\n#### 100,000", "80 000 + 20 000 = 100 000.\nThe answer is 100,000."),
        ("It is <<3*-1.5=-4.5>>-4.5\n#### -4.5", "It is -4.5\nThe answer is -4.5."),
        ("It is <<5*.01=0.05>>$0.05\n#### $0.05 ", "It is $0.05\nThe answer is $0.05."),
    ],
)
def test_gsm8k_is_known_by_its_last_line(answer: str, spoken: str):
    assert fitted({"question": "?", "answer": answer}) == turn("?", spoken)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "alone"},
        {"question": "Which?", "answer": 2},
        {"instruction": "Add.", "output": 5},
        {"text": 5},
        {"messages": "a text"},
        {"prompt": "Which?", "chosen": "a", "rejected": "b"},
    ],
)
def test_rows_of_no_known_shape_fit_nothing(row: dict):
    assert fit(row) is None


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"text": "A tale.", "code": "en", "label": False}, {"code", "label"}),
        ({"text": "A tale.", "title": "", "meta": None, "tags": []}, set()),
        ({"question": "?", "choices": ["a", "b"], "answer": "a"}, {"choices"}),
        ({"instruction": "Add.", "input": 3, "output": "5"}, {"input"}),
        ({"prompt": "?", "completion": "!", "label": 2, "score": 0.5, "source": "a", "split": "b"}, {"label", "score"}),
        (
            {"messages": turn("Hi", "Hello"), "prompt": "Hi", "context": "c", "source": 7},
            {"prompt", "context", "source"},
        ),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Ada"}, *turn("", "Hello")[1:]]}, {"messages[].name"}),
        ({"messages": [{**turn("Hi", "")[0], "weight": 0.5}, *turn("", "Hello")[1:]]}, {"messages[].weight"}),
        ({"messages": turn("Hi", "Hello"), "system": "Be brief.", "tools": [1]}, {"tools"}),
        ({"messages": [{"role": "system", "content": "a"}, *turn("b", "c")], "system": "d"}, {"system"}),
        ({"messages": [], "text": "A tale.", "prompt": "?"}, {"prompt"}),
    ],
)
def test_fields_that_nothing_is_made_of_are_named(row: dict, names: set[str]):
    assert unused(row) == names


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_a_system_message_comes_first(field: str, number: int):
    row, expected = EXAMPLES[number]
    assert fitted({**row, field: "Be brief."}) == [{"role": "system", "content": "Be brief."}, *expected]
    assert not unused({**row, field: "Be brief."})


@pytest.mark.parametrize("earlier", [[["Hi", "Hello"]], turn("Hi", "Hello")], ids=["pairs", "messages"])
def test_earlier_turns_come_before_the_question(earlier: list):
    row = {"instruction": "And?", "output": "No.", "history": earlier, "system": "Be brief."}
    expected = [{"role": "system", "content": "Be brief."}, *turn("Hi", "Hello"), *turn("And?", "No.")]
    assert fitted(row) == expected


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_an_answer_labelled_false_is_not_learnt(number: int):
    row, expected = EXAMPLES[number]
    assert fitted({**row, "label": True}) == expected
    with pytest.raises(LeftOut, match="labelled false"):
        fit({**row, "label": False})


def test_the_messages_of_a_prompt_are_context():
    found = fit({"prompt": [*turn("Hi", "Hello"), *turn("And?", "")[:1]], "completion": turn("", "No.")[1:]})
    assert found is not None and isinstance(found.content, Talk)
    assert found.content.messages == [*turn("Hi", "Hello"), *turn("And?", "No.")]
    assert found.content.context == {0, 1, 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"history": [["one"]], "prompt": "?", "completion": "!"}, r"history\[0\] is no pair"),
        ({"history": [["one", 2]], "prompt": "?", "completion": "!"}, r"history\[0\]\[1\] is a number"),
        ({"prompt": "?", "completion": "half \ud83d"}, r"completion holds '\\ud83d', half a character"),
        ({"prompt": "?", "completion": "!", "system": "\udc00"}, "system holds"),
        ({"text": "fine", "source": "\ud83d"}, "source holds"),
        ({"prompt": "?", "completion": ["!"]}, r"completion\[0\] is a text; each message is"),
    ],
)
def test_what_breaks_a_row_is_named_with_its_field(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        fit(row)
