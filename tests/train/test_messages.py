"""Messages in the spellings of many data sets; tidied contents."""

import pytest

from depthdial.train.messages import ROLES, TOOLS, LeftOut, Talk, conversation, shown, tidy, turn


def message(role: object = "user", content: object = "Hi", **more: object) -> dict:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("spell", [str, str.upper, str.capitalize, " {}: ".format])
def test_roles_in_any_spelling(role: str, spell):
    assert conversation([message(spell(role))], "messages").messages == [message(ROLES[role])]
    assert conversation([{"from": spell(role), "value": "Hi"}], "messages").messages == [message(ROLES[role])]


@pytest.mark.parametrize(
    "found",
    [
        *(message(role) for role in sorted(TOOLS)),
        message("Tool"),
        message("assistant", "", tool_calls=[{"function": {}}]),
        message("assistant", None, function_call={"name": "f"}),
    ],
)
def test_tool_turns_are_left_out(found: dict):
    with pytest.raises(LeftOut, match="tool turns, which are not known"):
        conversation([message(), found], "messages")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (message("narrator"), r"messages\[1\].role is 'narrator', which is not known; give one of user, human"),
        ({"from": "\x1b[31mx", "value": "y"}, r"messages\[1\].from is '\\x1b\[31mx'"),
        (message(5), r"messages\[1\].role is a number"),
        (message(content=None), r"messages\[1\] has no content"),
        (message(content=5), r"messages\[1\].content is a number; give text"),
        (message(content={"text": "x"}), r"messages\[1\].content is an object"),
        (message(content=[{"type": "image_url"}]), r"messages\[1\].content\[0\] is of type 'image_url'; a part"),
        (message(content=["a", 5]), r"messages\[1\].content\[1\] is a number"),
        (message(content="\ud83d"), r"messages\[1\].content holds '\\ud83d', half a character"),
        (message(content=[{"type": "text", "text": "\ude00"}]), r"messages\[1\].content\[0\].text holds"),
        ("Hi", r"messages\[1\] is a text; each message is an object"),
        (None, r"messages\[1\] is null"),
        ({"speaker": "user", "text": "Hi"}, r"messages\[1\] has no role \(it has speaker, text\)"),
    ],
)
def test_what_is_no_message_is_named(found: object, text: str):
    with pytest.raises(ValueError, match=text) as caught:
        conversation([message(), found], "messages")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [["Hi", " you"], [{"type": "text", "text": "Hi"}, {"type": "input_text", "text": " you"}], [{"text": "Hi you"}]],
)
def test_text_parts_are_text(content: list):
    assert conversation([message(content=content)], "m").messages == [message(content="Hi you")]


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss"])
def test_a_message_of_weight_zero_is_context(name: str):
    found = [message(**{name: False}), message(**{name: 0}), message(**{name: 0.0}), message(**{name: 1}), message()]
    talk = conversation(found, "messages")
    assert talk.context == {0, 1, 2}
    assert not talk.unused


def test_tidying_keeps_context_with_its_message():
    talk = Talk([{"role": "system", "content": " "}, *turn("a", "b"), *turn("c", "d"), *turn("e", "")], context={2, 4})
    assert talk.tidy().messages == [*turn("a", "b"), *turn("c", "d")]
    assert talk.tidy().context == {1, 3}


def test_messages_after_an_empty_one_are_named():
    talk = Talk([*turn("a", "b"), *turn("c", " "), *turn("e", "f")])
    assert talk.tidy().messages == turn("a", "b")
    assert talk.tidy().unused == {"messages after an empty one"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("        return 1\n    return 0", "        return 1\n    return 0"),
        ("\n\n\tx\n", "\tx"),
        (" \r\n  \r\n  - one\r\n  - two \r\n", "  - one\n  - two"),
        (" x\n y", " x\n y"),
        (" Paris.", "Paris."),
        (" Paris.\nFrance.", "Paris.\nFrance."),
        ("  ", ""),
    ],
)
def test_indentation_stays(text: str, kept: str):
    assert tidy(text) == kept


def test_names_that_cannot_be_printed_are_escaped():
    assert shown("größe") == "größe"
    assert shown("\x1b[2J\ud83d") == "'\\x1b[2J\\ud83d'"
