"""Rows of known field names with anything in them: read, or refused with file and line. Nothing else comes out."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthdial.train.data import Record, read

LONG = "a number of 5,000 digits"
NAMES = st.sampled_from([
    "messages", "conversations", "prompt", "completion", "response", "question", "answer", "instruction", "input",
    "output", "context", "system", "history", "text", "code", "test_list", "label", "source", "split", "command",
    "description", "examples", "rationale", "tools", "weight", "query", "problem", "solution", "chosen", "rejected",
])  # fmt: skip
INNER = st.sampled_from([
    "role", "from", "content", "value", "type", "text", "weight", "tool_calls", "function_call", "task", "command",
])  # fmt: skip
TEXT = st.one_of(INNER, st.text(max_size=5), st.just("\ud83d"), st.just("a\n#### 5"), st.just("<<1+1=2>>2\n#### 2"))
LEAF = st.one_of(TEXT, st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.just(LONG))
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "Assistant", "system", "tool", "king"]), "content": st.one_of(TEXT, st.none())},
    optional={"weight": LEAF, "tool_calls": LEAF, "name": TEXT},
)
VALUE = st.recursive(
    st.one_of(LEAF, st.lists(MESSAGE, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(INNER, TEXT), inner, max_size=3)),
    max_leaves=6,
)
ROW = st.dictionaries(NAMES, VALUE, min_size=1, max_size=4)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ROW)
def test_any_row_is_read_or_refused_in_one_line(tmp_path: Path, row: dict):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + json.dumps(row).replace(f'"{LONG}"', "9" * 5000) + "\n", encoding="utf-8")
    said, records = "", [Record("")]
    try:
        records = read(path, strict=True)
    except ValueError as error:
        said = str(error)
    assert not said or (said.startswith(f"{path} line 2: ") and "\n" not in said and said.encode())
    if said:
        assert len(read(path)) == 1, "left out, where it does not stop everything"
        return
    assert records[0].text == "fine" and len(records) <= 2
    for record in records:
        json.dumps([record.source, record.messages, record.text], ensure_ascii=False).encode()
        assert all(set(message) == {"role", "content"} for message in record.messages)
        assert not record.messages or record.messages[-1]["role"] == "assistant"
        assert all(0 <= number < len(record.messages) for number in record.context)
