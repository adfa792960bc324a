"""Without an extra each verb that needs it says so in one line, before any work: nothing else is loaded for it."""

from __future__ import annotations

import sys

import pytest

from depthdial.core.extras import need, there


@pytest.mark.parametrize(
    ("missing", "args", "says"),
    [
        ("pyarrow", ["map", "--tasks", "copy", "--output", "{tmp}/map"], "depthdial[maps]"),
        ("pyarrow", ["map", "summary", "{tmp}"], "depthdial[maps]"),
        ("pyarrow", ["map", "html", "{tmp}"], "depthdial[maps]"),
        ("matplotlib", ["map", "summary", "{tmp}", "--output", "{tmp}/out"], "depthdial[plots]"),
        ("matplotlib", ["report", "{tmp}", "--output", "{tmp}/out"], "or add --no-plots"),
        ("lm_eval", ["evaluate"], "depthdial[evaluate]"),
        ("pyarrow", ["evaluate"], "depthdial[evaluate]"),
        ("datasets", ["evaluate"], "depthdial[evaluate]"),
        ("sacrebleu", ["evaluate", "--written", "default"], "depthdial[evaluate]"),
        ("fastapi", ["serve"], "depthdial[serve]"),
        ("uvicorn", ["serve"], "depthdial[serve]"),
        ("prometheus_client", ["serve"], "depthdial[serve]"),
    ],
)
def test_a_missing_extra_is_said_before_work_starts(failed, monkeypatch, tmp_path, missing, args, says):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("depthdial.models.load_base", lambda *_: pytest.fail("work had started"))
    message = failed(*(word.format(tmp=tmp_path) for word in args))
    assert missing in message and says in message and "pip install" in message
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_asked_for():
    need("torch", "none", "thinking")
    assert there("torch") and not there("no_such_package") and not there("no_such.package")
