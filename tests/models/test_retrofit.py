"""A base as a recursive model: which layers a block stands for, exact at full rank, nearer with each rank, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from depthdial.models.convert import layers_of
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint
from depthdial.models.retrofit import INITS, check, retrofit, stands_for

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
FAMILIES = ("llama", "mistral")


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_model: Callable) -> Any:
    """A base whose norms differ from layer to layer, as those of trained models do."""
    model = tiny_model(getattr(request, "param", "llama"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layernorm.weight"):
                weight.copy_(1 + 0.3 * torch.randn(weight.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def test_which_layers_a_block_stands_for():
    assert stands_for(30, 2, "stepwise") == [[round(i * 29 / 14)] for i in range(15)]
    assert stands_for(30, 2, "stepwise")[::14] == [[0], [29]], "both ends are kept"
    assert stands_for(6, 2, "average") == [[0, 3], [1, 4], [2, 5]]
    assert stands_for(6, 3, "lower") == [[0], [1]]
    assert stands_for(6, 6, "stepwise") == [[0]]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_at_full_rank_it_is_the_base(base: Any, init: str):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    made, covered = retrofit(base, 2, init, 32)
    torch.testing.assert_close(logits(made), logits(base), rtol=1e-3, atol=1e-3)
    assert covered == pytest.approx(1.0, abs=1e-6)
    assert len(layers_of(made)) == 3 and made.config.num_hidden_layers == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items()), "the base is untouched"
    plain, _ = retrofit(base, 2, init, 0)
    assert (logits(plain) - logits(base)).abs().max() > 1, "and not because the blocks alone are"


@pytest.mark.parametrize("init", INITS)
def test_each_rank_is_nearer(base: Any, init: str):
    covered = [retrofit(base, 3, init, rank).covered for rank in (0, 4, 16, 32)]
    assert covered[0] == 0.0 and covered == sorted(covered) and covered[1] > 0.2 and covered[3] > 0.999


def test_lower_visits_the_first_layers_as_they_are(base: Any):
    made: Any = retrofit(base, 2, "lower", 4).model
    units = converted_of(made).units
    first, again = ([part for s in steps for part in units[s].parts.values()] for steps in (range(3), range(3, 6)))
    assert not any(part.get_parameter("up").any() for part in first), "nothing is missing there"
    assert all(part.get_parameter("down").any() for part in first), "but they may learn"
    assert all(part.get_parameter("up").any() for part in again)


def test_changes_make_up_for_the_blocks_rounding(base: Any):
    for weight in base.parameters():  # not the buffers of the rope
        weight.data = weight.data.to(torch.bfloat16)
    made: Any = retrofit(base, 2, "average", 32).model
    assert {w.dtype for n, w in made.named_parameters() if ".parts." not in n} == {torch.bfloat16}
    assert {w.dtype for n, w in made.named_parameters() if ".parts." in n} == {torch.float32}
    torch.testing.assert_close(logits(made.float()), logits(base.float()), rtol=1e-3, atol=1e-3)


def test_a_saved_folder_is_the_same_model_of_its_own_fingerprint(base: Any, tmp_path: Path):
    made: Any = retrofit(base, 2, "average", 8).model
    made.save_pretrained(tmp_path / "out")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(opened), logits(made))
    assert type(opened).__name__ == "DepthdialLlama" and opened.config.method["name"] == "recursive"
    assert fingerprint(opened) == fingerprint(made) != fingerprint(base)
    other = fingerprint(retrofit(base, 2, "lower", 8).model)
    assert other.config == fingerprint(made).config and other.weights != fingerprint(made).weights
    out = opened.generate(IDS[:1], max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        assert torch.equal(opened(out[:, :-1]).logits[0, IDS.shape[1] - 1 :].argmax(-1), out[0, IDS.shape[1] :])


@pytest.mark.parametrize(
    ("config", "loops", "init", "rank", "said"),
    [
        ({}, 4, "average", 4, "4 loops do not divide 6 layers; choose one of 2, 3, 6"),
        ({}, 1, "average", 4, "loops must be at least 2"),
        ({}, 2, "upper", 4, "unknown init 'upper'; choose one of stepwise, average, lower"),
        ({}, 2, "lower", 33, r"a LoRA of rank 33 is more than its maps have; give 0 \(none\) to 32 \(exact\)"),
        ({}, 2, "lower", -1, "rank must be at least 0"),
        (
            {"attention_bias": True},
            2,
            "lower",
            4,
            r"made recursive \(biases, .*\); known, without biases: llama, mistral",
        ),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], loops: int, init: str, rank: int, said: str):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    with pytest.raises(ValueError, match=said):
        check(LlamaConfig(**sizes, **config), loops, init, rank)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "olmo2"])
def test_families_whose_layers_differ_in_more_are_refused(tiny_model: Callable, family: str):
    with pytest.raises(ValueError, match=r"cannot be made recursive .*; known, without biases: llama, mistral"):
        retrofit(tiny_model(family), 2, "average", 4)


def test_a_model_with_a_method_is_refused(base: Any):
    made = retrofit(base, 2, "average", 4).model
    with pytest.raises(ValueError, match="has a method of its own already"):
        retrofit(made, 3, "average", 4)
