"""Where nobody says how to draw, the model's own generation_config does, as Hugging Face reads it."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.own_sampling import OwnSampling


@pytest.mark.parametrize(
    ("file", "asked", "wanted"),
    [
        ({}, {}, (0.0, 1.0, 0)),
        ({"temperature": 0.6, "top_p": 0.9}, {}, (0.0, 0.9, 0)),  # without do_sample it is greedy
        ({"do_sample": True}, {}, (1.0, 1.0, 0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {}, (0.6, 0.9, 20)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"temperature": 0.0}, (0.0, 0.9, 20)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"top_p": 0.5, "top_k": 0}, (0.6, 0.5, 0)),
        ({"do_sample": False, "top_k": 5}, {"temperature": 2.0}, (2.0, 1.0, 5)),
    ],
)
def test_what_is_left_out_is_the_models_own(file, asked, wanted):
    params = OwnSampling(GenerationConfig(**file)).fill(SamplingParams(max_tokens=7, seed=3, **asked))
    assert (params.temperature, params.top_p, params.top_k) == wanted
    assert (params.max_tokens, params.seed) == (7, 3)


@pytest.mark.parametrize("file", [{"top_p": 1.5}, {"do_sample": True, "temperature": -1.0}, {"top_k": 2.5}])
def test_a_file_that_makes_no_sense_is_named(file):
    config = GenerationConfig()
    for name, value in file.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=f"generation_config.json: {list(file)[-1]}"):
        OwnSampling(config)


def test_the_llm_draws_as_the_model_asks_and_as_the_request_says(tiny_model, tiny_tokenizer, adaptive):
    def texts(params: SamplingParams | None, **file) -> list[list[int]]:
        model = adaptive(tiny_model())
        model.generation_config = GenerationConfig(eos_token_id=2, **file)
        out = LLM.of(model, tiny_tokenizer).generate(["the quick", "fox"], params)
        return [one.token_ids for one in out]

    greedy, drawn = SamplingParams(max_tokens=24, seed=5, temperature=0.0), SamplingParams(max_tokens=24, seed=5)
    asked = SamplingParams(max_tokens=24, seed=5, temperature=0.7, top_k=9, top_p=0.95)
    own = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.95}
    plain = texts(drawn)
    assert plain == texts(greedy) == texts(greedy, **own)
    assert texts(drawn, **own) == texts(asked) != plain
    assert texts(None) != texts(None, do_sample=True, temperature=2.0)
