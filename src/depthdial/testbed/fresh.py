"""How a model of the testbed begins, and how it grows by a layer.

From ordinary random weights a first hop was not learned in 450 steps, and with the priors here in 80 to 150. A word
that is made of parts begins as the sum of its parts, each in a direction of its role: `e3>e7` is e3 as what leads and
e7 as what is led to, `2:e3` is 2 and e3 as it is named. Keys begin as what queries look for, under the role of what
leads ("mimetic" initialisation, Trockman and Kolter, 2023, arXiv 2305.09828). And a new layer begins as a copy of the
one below, which does a hop already. They came together and were not tried one by one. All weights are trained; what
they come to is not bound by how they began.

Two roles, since with one for both no second hop was learned in 250 steps, and with two in 80 (one run each). A likely
reason: a pair's own token then looks for what it leads by itself, and is found by the next hop in place of the pair
that is wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from depthdial.core.method import Method
from depthdial.models.convert import convert, layers_of
from depthdial.models.scratch import Spec
from depthdial.testbed.tasks import HOP, World

DEVIATION = 0.1
"""Of fresh weights: transformers' 0.02 is made for wider models."""


def config_of(spec: Spec, world: World) -> LlamaConfig:
    """A Llama of this size over the words of a world; tied, so that an answer is a word to ask on with."""
    return LlamaConfig(
        vocab_size=len(world.words),
        hidden_size=spec.width,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads or spec.heads,
        max_position_embeddings=max(spec.context, world.length),
        initializer_range=DEVIATION,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )


@torch.no_grad()
def fresh_dense(spec: Spec, world: World, seed: int, depth: int) -> LlamaForCausalLM:
    """A random fp32 model of `spec` with the priors above, the same for the same seed. depth: of the model that it will
    grow to: what each layer adds is scaled by it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config_of(spec, world)).float()
        lead, led = _turn(spec.width), _turn(spec.width)
        times = torch.randn(world.hops + 1, spec.width) * DEVIATION
    words, first = model.get_input_embeddings().weight, world.words.index
    assert isinstance(words, Tensor)
    if HOP in world.kinds:
        n = world.entities
        names = words[first("e0") : first("e0") + n]
        pairs = ((names @ lead)[:, None] + names @ led) / 2**0.5
        words[first("e0>e0") : first("e0>e0") + n * n] = pairs.view(n * n, -1)
        asked = (times[:, None] + names) / 2**0.5
        words[first("0:e0") : first("0:e0") + len(times) * n] = asked.view(len(times) * n, -1)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * depth) ** -0.5)
    for layer in layers_of(model):
        attn = layer.get_submodule("self_attn")
        keys, queries = attn.get_parameter("k_proj.weight"), attn.get_parameter("q_proj.weight")
        keys.copy_(queries[: len(keys)] @ lead)
    return model


def _turn(width: int) -> Tensor:
    """A random rotation, [width, width]."""
    return torch.linalg.qr(torch.randn(width, width))[0]


@torch.no_grad()
def deeper(model: LlamaForCausalLM, method: Method | None = None) -> LlamaForCausalLM:
    """A copy with one more layer, which begins as the one below it, with its parts where the model is routed."""
    config = LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": model.config.num_hidden_layers + 1})
    grown = LlamaForCausalLM(config).float()
    if method is not None:
        convert(grown, method, frozen=False)
    last = model.config.num_hidden_layers
    state = dict(model.state_dict())
    below = f"model.layers.{last - 1}."
    state |= {n.replace(below, f"model.layers.{last}.", 1): w for n, w in state.items() if n.startswith(below)}
    grown.load_state_dict({name: weight.clone() for name, weight in state.items()})
    return grown


def tokenizer_of(world: World) -> PreTrainedTokenizerFast:
    """One token a word, words apart by a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(world.words)}, unk_token="<"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<")
