"""Fresh models: sizes read and refused, the same for the same seed, one folder that only depthdial opens, learning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from depthdial.core.method import Method
from depthdial.methods import Dense, Highway, MixtureOfDepths, Random, SkipLayer
from depthdial.models import load
from depthdial.models.block import spine_of
from depthdial.models.convert import base_weights
from depthdial.models.scratch import Spec, fresh

TINY = Spec.parse("4x2@32,kv=1,vocab=300,context=64")
IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
KINDS = [
    SkipLayer(density=0.3),
    SkipLayer(units=("attn", "mlp"), but=(1,)),
    MixtureOfDepths(capacity=0.5, weights="sigmoid"),
    Highway(),
    Random(first=0, rate=0.5, adapter_ratio=0),
    Dense(),
]
each_kind = pytest.mark.parametrize("method", KINDS, ids=repr)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS % model.config.vocab_size).logits


def test_a_size_is_read():
    assert Spec.parse("12x4@256") == Spec(12, 4, 256)
    assert Spec.parse("12x4@256").intermediate == 680, "8/3 of the width, in steps of 8"
    assert Spec.parse("2x4@64,kv=2,ffn=4x,vocab=1000,context=128") == Spec(2, 4, 64, 2, 256, 1000, 128)
    assert Spec.parse("2x4@64, ffn=100", vocabulary=77) == Spec(2, 4, 64, ffn=100, vocabulary=77)


@given(
    st.integers(1, 99), st.sampled_from([1, 2, 4, 8]), st.sampled_from([16, 64, 512]), st.none() | st.integers(1, 9999)
)
def test_what_is_written_is_read(layers: int, heads: int, width: int, ffn: int | None):
    spec = Spec(layers, heads, width, ffn=ffn)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12x4", "'12x4' cannot be read; write LAYERSxHEADS@WIDTH"),
        ("twelve", "cannot be read"),
        ("12x4@256,depth=3", "'depth=3' cannot be read"),
        ("12x4@256,kv=2,kv=4", "'kv=4' cannot be read"),
        ("12x4@256,kv=1.5", "'kv=1.5' cannot be read"),
        ("12x5@256", "5 heads do not divide the width 256"),
        ("12x4@36", "4 heads do not divide the width 36 into even sizes"),
        ("12x4@256,kv=3", "3 heads of K and V do not divide 4 heads"),
        ("0x4@256", "layers 0 is below 1"),
        ("2x0@256", "heads 0 is below 1"),
    ],
)
def test_bad_sizes_say_what_to_write(text: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Spec.parse(text)
    assert "\n" not in str(caught.value)


@each_kind
def test_one_folder_holds_all_of_it(method: Method, tmp_path: Path):
    model: Any = fresh(TINY, method, seed=3)
    assert model.dtype == torch.float32 and all(p.requires_grad for p in model.parameters())
    state = torch.get_rng_state()
    again: Any = fresh(TINY, method, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are touched"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(logits(model.eval()), logits(fresh(TINY, method, seed=4).eval()))
    model.save_pretrained(tmp_path)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened).__name__ == "DepthdialLlama" and opened.converted.method == method
    assert torch.equal(logits(opened), logits(model))
    assert torch.equal(opened.route.token_cost(), model.route.token_cost())
    assert all(p.requires_grad for p in opened.parameters())
    half: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for n, p in half.named_parameters() if ".parts." in n} <= {torch.float32}
    assert logits(half).dtype == torch.bfloat16
    out = opened.generate(IDS, max_new_tokens=4, do_sample=False)
    assert out.shape == (2, 16)
    assert len(spine_of(opened).layers) == 4


@each_kind
def test_what_layers_add_is_small_beside_what_they_read(method: Method):
    model: Any = fresh(Spec.parse("8x4@64"), method)
    found = {
        name.split(".")[-2]: float(weight.detach().std())
        for name, weight in base_weights(model).items()
        if "proj" in name
    }
    for name, deviation in found.items():
        wanted = 0.02 / 4 if name in ("o_proj", "down_proj") else 0.02
        assert deviation == pytest.approx(wanted, rel=0.1), name


def test_load_takes_it_as_it_is(tiny_tokenizer: Any, tmp_path: Path):
    model = fresh(TINY, SkipLayer(), tiny_tokenizer, seed=1)
    assert model.config.vocab_size == len(tiny_tokenizer) and model.config.eos_token_id == tiny_tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded, _ = load(str(tmp_path), dtype="float32", device="cpu")
    assert torch.equal(logits(loaded), logits(model.eval()))
    assert torch.equal(logits(load(str(tmp_path), budget=1.0, dtype="float32", device="cpu")[0]), dense(model))
    with pytest.raises(ValueError, match="takes no plug-in"):
        load(str(tmp_path), plugin=str(tmp_path))


def dense(model: Any) -> Tensor:
    """Logits with every layer run."""
    model.converted.set(offset=float("inf"))
    return logits(model)


OPEN = "from transformers import AutoModelForCausalLM as auto; auto.from_pretrained({folder!r})"


@pytest.mark.slow  # two fresh processes import torch
def test_stock_transformers_opens_it_only_after_import_depthdial(tmp_path: Path):
    fresh(TINY, SkipLayer()).save_pretrained(tmp_path)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    bare = run(OPEN.format(folder=str(tmp_path)))
    assert bare.returncode and "`depthdial_llama`" in bare.stderr and "does not recognize" in bare.stderr
    assert run("import depthdial\n" + OPEN.format(folder=str(tmp_path))).returncode == 0


def test_import_depthdial_is_enough(tmp_path: Path):
    """Here transformers was imported long ago."""
    fresh(TINY, SkipLayer()).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "DepthdialLlamaConfig"
    with pytest.raises(ValueError, match="depthdial_mamba"):
        AutoConfig.for_model("depthdial_mamba")


def test_it_learns_and_holds_its_density():
    """Eighty steps on one batch: the loss falls, and each layer runs about as often as it is asked to."""
    model: Any = fresh(Spec.parse("4x2@32,vocab=300"), SkipLayer(density=0.3, alpha=1.0), seed=0)
    model.train()
    ids = torch.randint(3, 300, (8, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, shares = [], []
    for step in range(80):
        model.converted.set(training=True, key=torch.arange(8) + 8 * step)
        loss = model(ids, labels=ids).loss
        (loss + model.converted.method.loss(model.route.last.tokens, model.route.last.trace).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        shares.append(torch.stack([d.keep.float().mean() for d in model.route.decisions.values()]))
    assert losses[-1] < 0.5 * losses[0]
    assert (torch.stack(shares[-20:]).mean(0) - 0.3).abs().max() < 0.15
