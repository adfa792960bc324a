"""What a server may be told."""

from __future__ import annotations

import pytest

from depthdial.serve.settings import EngineSettings, RequestLimits, ServerSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_queue", -1), ("max_body", 0), ("max_tokens", 0), ("max_prompt_tokens", 0), ("timeout", 0.0),
     ("timeout", float("nan")), ("body_timeout", -1.0)],
)  # fmt: skip
def test_limits_nobody_could_meet_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        RequestLimits(**{field: value})


@pytest.mark.parametrize("key", ["", " ", "a ", "ä"])
def test_a_key_that_protects_nothing_is_refused(key):
    with pytest.raises(ValueError, match="API key"):
        ServerSettings(api_key=key)


@pytest.mark.parametrize(
    ("model", "name"),
    [("smollm2-135m-instruct", "smollm2-135m-instruct"), ("org/model", "org/model"), ("/home/me/model/", "model"),
     ("./models/a.gguf", "a.gguf"), ("models/a.gguf", "a.gguf"), ("~/x/y", "y")],
)  # fmt: skip
def test_a_name_tells_no_path(model, name):
    assert ServerSettings(EngineSettings(model)).name == name
