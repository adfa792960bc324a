"""The released FlexiDepth naming: read against a forward written by hand, written back, and refused in one line."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from depthdial.core.method import Dims
from depthdial.core.route import Route
from depthdial.methods import FlexiDepth, Random
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.released import convert_released, export_released, import_released, load_released

D, D_FF, DEPTH, RANK, WIDTH = 32, 64, 6, 8, 16  # the tiny Llama of conftest; ratios of 4
ROUTED = (3, 4, 5)
DIMS = Dims(D, D_FF)
DOWN = "model.layers.4.router_proj.down_proj.weight"


def synthetic(layers=ROUTED, rank=RANK, width=WIDTH):
    """A checkpoint of the authors' naming with random weights: gates that disagree, adapters that do something."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.4

    tensors = {}
    for i in layers:
        here = f"model.layers.{i}"
        tensors[f"{here}.router.router_enc.weight"] = random(rank, D)
        tensors[f"{here}.router.router_norm.weight"] = 1 + random(rank)
        tensors[f"{here}.router.router_dec.weight"] = random(D, rank)
        tensors[f"{here}.router.router_head.weight"] = random(1, D)
        tensors[f"{here}.router_proj.gate_proj.weight"] = random(width, D)
        tensors[f"{here}.router_proj.down_proj.weight"] = random(width, D)
        tensors[f"{here}.router_proj.up_proj.weight"] = random(D, width)
    return tensors


def by_hand(model, tensors, ids):
    """Logits, and how many layers each token used: the paper's equations with the released soft weights."""
    decoder, eps = model.model, model.config.rms_norm_eps

    def rms(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    x = decoder.embed_tokens(ids)
    rope = decoder.rotary_emb(x, torch.arange(ids.shape[1])[None])
    used = torch.zeros(ids.shape)
    for i, layer in enumerate(decoder.layers):
        z = rms(x, layer.input_layernorm.weight)
        attended = layer.self_attn(z, position_embeddings=rope, attention_mask=None)[0]
        if i not in ROUTED:
            x = x + attended
            x = x + layer.mlp(rms(x, layer.post_attention_layernorm.weight))
            used += 1
            continue
        router = [tensors[f"model.layers.{i}.router.router_{n}.weight"] for n in ("enc", "norm", "dec", "head")]
        into_gate, into, out_of = (
            tensors[f"model.layers.{i}.router_proj.{n}_proj.weight"] for n in ("gate", "down", "up")
        )
        enc, norm, dec, head = router
        g = torch.sigmoid(torch.tanh(rms(z @ enc.T, norm)) @ dec.T @ head.T)
        m = (g > 0.5).float()
        x = x + m * attended
        u = rms(x, layer.post_attention_layernorm.weight)
        adapter = (F.silu(u @ into_gate.T) * (u @ into.T)) @ out_of.T
        x = x + m * g * layer.mlp(u) + (1 - m) * (1 - g) * adapter
        used += m[..., 0]
    return model.lm_head(rms(x, decoder.norm.weight)), used


@torch.no_grad()
def test_the_imported_model_computes_what_the_equations_say(tiny_model):
    ids = torch.randint(0, 300, (3, 24), generator=torch.Generator().manual_seed(1))
    tensors = synthetic()
    expected, used = by_hand(tiny_model(), tensors, ids)
    model = convert_released(tiny_model(), tensors)
    torch.testing.assert_close(model(ids).logits, expected, atol=2e-4, rtol=1e-4)
    assert isinstance(model.route, Route)
    assert torch.equal(model.route.layers_used.float(), used)
    assert DEPTH - 3 < used.mean() < DEPTH  # both branches were taken


def test_the_method_is_read_off_names_and_shapes():
    method, parts = import_released(synthetic(), DEPTH, DIMS)
    assert method == FlexiDepth(
        first=3, last=6, router_ratio=4, adapter_ratio=4, weights="soft", gate_gradient="soft_scale", start=0.0
    )
    assert parts["layers.4.mlp.adapter.up.weight"].shape == (WIDTH, D)
    assert parts["layers.4.attn.router.bias"] == 0


def test_released_ratios_and_a_layer_left_out():
    method, _ = import_released(synthetic((1, 2, 4), rank=D // 16, width=D_FF // 16), DEPTH, DIMS)
    assert (method.router_ratio, method.adapter_ratio) == (16, 16)
    assert sorted({method.program(DEPTH).steps[s].block for s in method.program(DEPTH).routed}) == [1, 2, 4]


def test_imported_parts_are_those_of_a_converted_model(tiny_model):
    method, parts = import_released(synthetic(), DEPTH, DIMS)
    own = parts_of(convert(tiny_model(), method))
    assert {n: t.shape for n, t in parts.items()} == {n: t.shape for n, t in own.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_then_export_is_identical(tiny_model, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in synthetic().items()}
    back = export_released(convert_released(tiny_model(), tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name].to(dtype), tensors[name]) for name in tensors)
    assert all(torch.equal(back[name], tensors[name].float()) for name in tensors)


def test_a_full_checkpoint_of_base_and_parts(tiny_model):
    other = tiny_model(seed=5).state_dict()  # another base's weights: left out
    before = tiny_model().state_dict()
    model = convert_released(tiny_model(), other | synthetic())
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
    assert export_released(model).keys() == synthetic().keys()


def test_a_folder_of_shards(tiny_model, tmp_path):
    tensors = synthetic()
    full = {n: t.clone() for n, t in tiny_model().state_dict().items() if n != "lm_head.weight"} | tensors
    names = sorted(full)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({n: full[n] for n in held}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: file for file, held in shards.items() for n in held}}))
    back = export_released(load_released(tiny_model(), tmp_path))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)

    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: its index names model-2\.safetensors"):
        load_released(tiny_model(), tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is not a safetensors index"):
        load_released(tiny_model(), tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match="the checkpoint lacks model"):
        load_released(tiny_model(), tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model-1\.safetensors cannot be read"):
        load_released(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match="has no safetensors files"):
        load_released(tiny_model(), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "not a released FlexiDepth checkpoint"),
        (lambda t: t.pop(DOWN), f"lacks {DOWN}"),
        (lambda t: t.update({"model.layers.4.router.router_enc.bias": torch.zeros(8)}), r"has .*router_enc\.bias"),
        (lambda t: t.update({DOWN: t[DOWN].T}), r"down_proj\.weight has shape \[32, 16\], not \[16, 32\]"),
        (lambda t: t.update(synthetic((6,))), "routes layer 6 and this model has 6 layers"),
        (lambda t: t.update({n: t[n][:, :16] for n in t if "enc" in n}), r"router_enc.* \[8, 16\], not \[8, 32\]"),
        (lambda t: t.update({n: torch.ones(11, D) for n in t if "enc" in n}), "no whole fraction of 32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(tiny_model, change, message):
    tensors, model = synthetic(), tiny_model()
    change(tensors)
    with pytest.raises(ValueError, match=message) as error:
        convert_released(model, tensors)
    assert "\n" not in str(error.value)
    convert_released(model, synthetic())  # it was left as it was


def test_what_the_released_form_cannot_hold_is_not_exported(tiny_model):
    with pytest.raises(ValueError, match="only a model converted by flexidepth"):
        export_released(tiny_model())
    with pytest.raises(ValueError, match="only a model converted by flexidepth"):
        export_released(convert(tiny_model(), Random()))
    with pytest.raises(ValueError, match="weights 'soft', not 'hard'"):
        export_released(convert(tiny_model(), FlexiDepth(weights="hard", start=0.0)))
    with pytest.raises(ValueError, match=r"gate of layer 3 has a bias of 2"):
        export_released(convert(tiny_model(), FlexiDepth(start=2.0)))
