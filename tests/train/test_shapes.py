"""Every row shape gives the conversation it should."""

import pytest

from depthdial.train.shapes import SHAPES, fit, turn

# One row a shape, in the order of SHAPES, with what it must become.
EXAMPLES = [
    ({"messages": turn("Hi", "Hello")}, turn("Hi", "Hello")),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        turn("Hi", "Hello"),
    ),
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


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=[s.fields for s in SHAPES])
def test_each_shape_adapts_its_row_and_no_earlier_shape_takes_it(number: int):
    row, expected = EXAMPLES[number]
    assert SHAPES[number].adapt(row) == expected
    assert fit(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": None, "response": "5"}, "Add.\n\n"),
        ({"prompt": "Say five", "response": "5"}, "Say five"),
    ],
)
def test_other_field_names_of_the_same_shape(row: dict, expected: str):
    assert fit(row) == turn(expected, "5")


def test_a_rationale_without_full_stop_is_followed_by_a_new_line():
    row = {"prompt": "?", "rationale": "5 * 15 = 75", "answer": "(C)"}
    assert fit(row) == turn("?", "5 * 15 = 75\nThe answer is (C).")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "alone"},
        {"question": "Which?", "answer": 2},
        {"messages": ["Hi"]},
        {"messages": [{"role": "user", "content": None}]},
        {"conversations": [{"from": "narrator", "value": "It was night."}]},
        {"instruction": "Add.", "input": 3, "output": "5"},
        {"text": 5},
    ],
)
def test_rows_of_no_known_shape_fit_nothing(row: dict):
    assert fit(row) is None
