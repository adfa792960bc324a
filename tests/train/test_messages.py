"""Messages in the spellings of many data sets; tidied contents."""

import pytest

from depthdial.train.messages import CALLS, REPLIES, ROLES, Talk, conversation, shown, tidy, turn


def message(role: object = "user", content: object = "Hi", **more: object) -> dict:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("spell", [str, str.upper, str.capitalize, " {}: ".format])
def test_roles_in_any_spelling(role: str, spell):
    assert conversation([message(spell(role))], "messages").messages == [message(ROLES[role])]
    assert conversation([{"from": spell(role), "value": "Hi"}], "messages").messages == [message(ROLES[role])]


CALL = {"function": {"name": "add", "arguments": '{"a": 2}'}}
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'


@pytest.mark.parametrize("role", sorted(CALLS | REPLIES))
@pytest.mark.parametrize("spell", [str, str.upper, " {}: ".format])
def test_turns_of_tools_are_text_that_any_template_can_write(role: str, spell):
    user = role in REPLIES
    mark = "tool_response" if user else "tool_call"
    expected = message("user" if user else "assistant", f"<{mark}>\nx\n</{mark}>")
    assert conversation([message(), message(spell(role), " x ")], "messages").messages[-1] == expected


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": "", "tool_calls": [CALL]}, CALLED),
        ({"content": None, "tool_calls": [CALL]}, CALLED),
        ({"content": "Let me add.", "tool_calls": [CALL, CALL]}, f"Let me add.\n{CALLED}\n{CALLED}"),
        ({"content": None, "function_call": CALL["function"]}, CALLED),
        ({"content": "", "tool_calls": [{"name": "f"}]}, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
        (
            {"content": "", "tool_calls": [{"name": "f", "arguments": "not json"}]},
            '<tool_call>\n{"name": "f", "arguments": "not json"}\n</tool_call>',
        ),
    ],
)
def test_calls_beside_a_content_follow_it(fields: dict, content: str):
    talk = conversation([message(), {"role": "assistant", **fields}], "messages")
    assert talk.messages[-1] == message("assistant", content)
    assert not talk.unused


def test_replies_of_several_tools_are_one_turn_and_speakers_alternate():
    replies = [message("tool", "4", tool_call_id="1"), message("tool", "5", tool_call_id="2")]
    rows = [message(), message("assistant", "", tool_calls=[CALL, CALL]), *replies, message("assistant", "4 and 5")]
    talk = conversation([*rows, message("user", "a"), message("user", "b")], "messages")
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "user", "assistant", "user", "user"]
    assert talk.messages[2]["content"] == "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>"
    assert not talk.unused


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (message("narrator"), r"messages\[1\].role is 'narrator', which is not known; give one of user, human"),
        ({"from": "\x1b[31mx", "value": "y"}, r"messages\[1\].from is '\\x1b\[31mx'"),
        (message("assistant", tool_calls=[5]), r"messages\[1\].tool_calls is no call of a tool; give"),
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
