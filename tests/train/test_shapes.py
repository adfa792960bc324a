"""Every row shape gives the conversation it should; what a shape does not use is named."""

import pytest

from depthdial.train.messages import Exclusion, Talk
from depthdial.train.shapes import ANSWERS, QUESTIONS, SHAPES, Fields, fit, misfit, turn

# One row a shape, in the order of SHAPES, with what it must become.
EXAMPLES = [
    ({"messages": turn("Hi", "Hello")}, turn("Hi", "Hello")),
    (
        {"prompt": "Is ice cold?", "rationale": "Ice is frozen water.", "answer": "yes"},
        turn("Is ice cold?", "Ice is frozen water. The answer is yes."),
    ),
    ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, turn("Add.\n\n2 and 3", "5")),
    (
        {"command": "ls", "description": "List files.", "examples": [{"task": "All", "command": "ls -a"}]},
        turn("How do I use the `ls` command?", "List files.\n\n- All:\n  `ls -a`"),
    ),
    ({"text": "Add two numbers.", "code": "a + b", "task_id": 1}, turn("Add two numbers.", "a + b")),
    ({"chosen": turn("Hi", "Hello")}, turn("Hi", "Hello")),
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
        ({"query": "Say five", "response": "5"}, "Say five"),
        ({"problem": "Say five", "solution": "5"}, "Say five"),
        ({"input": "Say five", "output": "5"}, "Say five"),
        ({"inputs": "Say five", "targets": "5"}, "Say five"),
        ({"prompt": "Say five", "chosen": "5"}, "Say five"),
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
        (
            "48/2 = <<48/2=24>>24 clips.\n24+48 = <<24+48=72>>72.\n#### 72",
            "48/2 = 24 clips.\n24+48 = 72.\nThe answer is 72.",
        ),
        ("80 000 + 20 000 = 100 000.\n#### 100,000", "80 000 + 20 000 = 100 000.\nThe answer is 100,000."),
        ("It is <<3*-1.5=-4.5>>-4.5\n#### -4.5", "It is -4.5\nThe answer is -4.5."),
        ("It is <<5*.01=0.05>>$0.05\n#### $0.05 ", "It is $0.05\nThe answer is $0.05."),
    ],
)
def test_gsm8k_is_known_by_its_last_line(answer: str, spoken: str):
    assert fitted({"question": "?", "answer": answer}) == turn("?", spoken)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_any_name_of_a_question_goes_with_any_name_of_an_answer(question: str, answer: str):
    assert fitted({question: "Say five", answer: "5", "meta": 1}) == turn("Say five", "5")
    assert unused({question: "Say five", answer: "5", "meta": 1}) == {"meta"}


FULL = turn("Hi", "Hello")


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"prompt": FULL[:1], "completion": FULL[1:]}, {0}),
        ({"prompt": FULL[:1], "chosen": FULL[1:], "rejected": turn("", "Go away")[1:]}, {0}),
        ({"prompt": FULL[:1], "completion": FULL[1:], "label": True}, {0}),
        ({"chosen": FULL, "rejected": turn("Hi", "Go away")}, set()),
        ({"prompt": "Hi", "chosen": FULL, "rejected": turn("Hi", "Go away")}, set()),
        ({"messages": FULL}, set()),
    ],
)
def test_the_conversations_of_trl(row: dict, context: set[int]):
    form = fit(row)
    assert form is not None and isinstance(form.content, Talk)
    assert form.content.messages == FULL and form.content.context == context
    assert form.unused == {"rejected"} & set(row)


def test_what_was_chosen_of_two_texts_is_text():
    assert fitted({"chosen": "The sky is blue.", "rejected": "It is green."}) == "The sky is blue."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "there are no fields; accepted: messages"),
        ({"prompt": "alone"}, "prompt stands without answer; give it as one of completion, response"),
        ({"solution": "x"}, "solution stands without question; give it as one of instruction, prompt"),
        ({"question": "Which?", "answer": 2}, "answer is a number; give text"),
        ({"question": "Which?", "answer": ["a"]}, "answer is a list; give text"),
        ({"instruction": "Add.", "output": 5}, "output is a number; give text"),
        ({"text": 5}, "text is a number; give text"),
        ({"messages": "a text"}, "messages is a text; give a list of {role, content}"),
        ({"prompt": True, "completion": "x"}, "prompt is true or false; give text"),
        ({"title": "a", "\x1bx": 1}, r"no field is known (title, '\x1bx'); accepted: messages"),
    ],
)
def test_rows_of_no_known_shape_fit_nothing_and_it_is_said_why(row: dict, words: str):
    assert fit(row) is None
    assert misfit(row).startswith(words)


@pytest.mark.parametrize(("row", "kind"), [(5, "a number"), ("x", "a text"), (None, "null"), ([], "a list")])
def test_what_is_no_object_is_no_row(row: object, kind: str):
    assert misfit(row) == f"the row is {kind}; give an object with fields"


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"text": "A tale.", "code": "en", "label": False}, {"code", "label"}),
        ({"text": "A tale.", "title": "", "meta": None, "tags": []}, set()),
        ({"question": "?", "choices": ["a", "b"], "answer": "a"}, {"choices"}),
        ({"instruction": "Add.", "input": 3, "output": "5"}, {"input"}),
        ({"problem": "?", "solution": "long", "answer": "42"}, {"answer"}),
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
@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_a_system_message_comes_first(field: str, number: int):
    row, expected = EXAMPLES[number]
    assert fitted({**row, field: "Be brief."}) == [{"role": "system", "content": "Be brief."}, *expected]
    assert not unused({**row, field: "Be brief."})


@pytest.mark.parametrize("earlier", [[["Hi", "Hello"]], turn("Hi", "Hello")], ids=["pairs", "messages"])
def test_earlier_turns_come_before_the_question(earlier: list):
    row = {"instruction": "And?", "output": "No.", "history": earlier, "system": "Be brief."}
    expected = [{"role": "system", "content": "Be brief."}, *turn("Hi", "Hello"), *turn("And?", "No.")]
    assert fitted(row) == expected


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_an_answer_labelled_false_is_not_learnt(number: int):
    row, expected = EXAMPLES[number]
    assert fitted({**row, "label": True}) == expected
    with pytest.raises(Exclusion, match="labelled false"):
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
        ({"prompt": "?", "completion": [{"text": "!"}]}, r"completion\[0\] has no role"),
    ],
)
def test_what_breaks_a_row_is_named_with_its_field(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        fit(row)
