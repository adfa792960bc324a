"""What a configuration alone says of how prompts can be read."""

from __future__ import annotations

import json

import pytest

from depthdial.methods import Dense, SkipLayer
from depthdial.models.ahead import check_reading
from depthdial.models.scratch import Spec, fresh

SPEC = "4x2@32,kv=1,vocab=300,context=64"


def config_alone(model, folder) -> str:
    """A folder in which nothing but config.json can be read."""
    model.save_pretrained(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"nothing")
    return str(folder)


def test_a_model_with_its_own_routers_has_no_base_to_read_with(tmp_path):
    name = config_alone(fresh(Spec.parse(SPEC), SkipLayer(density=0.5), seed=0), tmp_path / "own")
    check_reading(name, "same")
    for asked in (1.0, 0.9):
        with pytest.raises(ValueError, match=f'its own routers.*give "same", not {asked}'):
            check_reading(name, asked)


def test_every_other_model_has_one(tmp_path, tiny_folder):
    check_reading("smollm2-135m-instruct", 0.9)
    check_reading(str(tiny_folder), 1.0)
    check_reading(config_alone(fresh(Spec.parse(SPEC), Dense(), seed=0), tmp_path / "dense"), 1.0)
    name = config_alone(fresh(Spec.parse(SPEC), SkipLayer(density=0.5), seed=0), tmp_path / "exported")
    file = tmp_path / "exported" / "config.json"  # an exported model knows its base
    file.write_text(json.dumps({**json.loads(file.read_text()), "base": {"model_type": "llama"}}))
    check_reading(name, 1.0)
