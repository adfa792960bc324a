"""The peer: `flexidepth` of the library economize (PyPI, 0.3.2), trained on our tokens by its own recipe, measured as
ours is.

    pip install --no-deps --target PEER economize==0.3.2     (kept out of this project's environment)
    PYTHONPATH=PEER python benchmarks/peers/economize_flexidepth.py RUN OUTPUT [--steps N] [--kl] ...

RUN is the output folder of a training of ours (recipes/smollm2.py): the peer gets its base and its packed rows. Its
recipe is economize's default in everything else: technique (upper half of the layers, gates that start at sigmoid(5),
adapters at zero), objective (cross-entropy + 1e-3 * mean((sum g)^2)) and optimizer (AdamW 5e-4, betas 0.9 and 0.95,
weight decay 0.01, 100 steps of warm-up, cosine to a tenth, clip 1). `--kl` distils from the base instead of learning
the text, which economize offers too, and is what our recipe does.

What it computes, read in its source and checked here on a tiny model: one gate per token and layer on the residual
stream (an RMSNorm of its own before router and adapter), not on the layer's normed input. A kept token leaves the layer
as x + g * (layer(x) - x), attention and MLP alike; a skipped one as x + (1 - g) * adapter(n(x)), so the adapter stands
for the whole layer. K and V are written for every token. In training every layer runs for every token and the gate
learns through g alone. At inference the kept tokens are gathered; but in a batch Q, K, V and the adapter run for all
tokens, then Q, K, V again for the kept ones: the library executes more than the cost counted here, which is what the
method needs.

The one thing added: a row holds several documents, and economize's batches have no position ids. `PackedRunner` gives
its own tree layout (each document a chain) to every pass, so that no document sees another, as in our training.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from economize import EfficientModel, apply, load
from economize.runtime import LayerContext, LayerRunner, TreeLayout
from economize.techniques.dynamic_depth import FlexiDepthConfig, FlexiDepthObjective
from economize.train import LoaderSource, fit
from torch import Tensor
from torch.utils.data import DataLoader

from depthdial.core.cost import Ledger, StepWork, token_cost
from depthdial.core.decision import Decision
from depthdial.core.program import plain
from depthdial.core.tokens import Tokens, Trace
from depthdial.models.base import load_base
from depthdial.models.families import family_of
from depthdial.train.config import TrainConfig
from depthdial.train.data import holdout, read
from depthdial.train.pack import PackedDataset, prepare

TECHNIQUE = "flexidepth"


class PackedRunner(LayerRunner):
    """economize's runner for rows of several documents, told by `position_ids` (int64 [B, T]) before each pass."""

    position_ids: Tensor

    def context(self, cache: Any, *_args: Any, **_kwargs: Any) -> LayerContext:
        positions = self.position_ids
        document = (positions == 0).cumsum(1)
        at = torch.arange(positions.shape[1], device=positions.device)
        visible = (document[:, :, None] == document[:, None, :]) & (at[:, None] >= at)
        tree = TreeLayout(positions.new_zeros(len(positions)), at.expand_as(positions), positions, visible)
        return self.tree_context(cache, tree, trusted=True)


class Rows:
    """Packed rows in batches of equal size, shuffled anew each epoch; the runner learns their positions in passing."""

    def __init__(self, rows: PackedDataset, batch: int, seed: int, runner: PackedRunner):
        self.loader = DataLoader(
            rows, batch_size=batch, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed)
        )
        self.runner = runner

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            self.runner.position_ids = batch.pop("position_ids").to(self.runner.adapter.device)
            yield batch


class Peer:
    """A trained economize model that answers as ours does, and its dial.

    The library has one knob after training, the threshold (`dial = "threshold"`): what is skipped changes, g does not.
    "logit" shifts the gate's logit by `offset` instead, as our dial does. Both skip the same tokens of the first routed
    layer at one `offset`: threshold = sigmoid(-offset). offset inf is the untouched base.
    """

    def __init__(self, model: EfficientModel, dial: Literal["threshold", "logit"] = "threshold"):
        self.model, self.dial, self.offset = model, dial, 0.0
        self.technique = model.techniques[TECHNIQUE]
        model.runner = PackedRunner(model.adapter)
        base, config = model.base_model, model.base_model.config
        family, layers = family_of(config), base.get_decoder().layers
        parts = {int(i) - 1: (self.technique.routers[i], self.technique.adapters[i]) for i in self.technique.routers}
        self.biases = {router.head.bias: router.head.bias.detach().clone() for router, _ in parts.values()}
        works = []
        for i, layer in enumerate(layers):
            work, look, bypass = family.work(layer, config, i), 0, 0
            if i in parts:
                enc, adapter = parts[i][0].enc, parts[i][1]
                look, bypass = enc.weight.numel() + enc.out_features, 3 * adapter.gate.weight.numel()
            works.append(StepWork(work, look, bypass, absent=work.kv))
        self.ledger = Ledger(
            plain(len(layers), tuple(parts)), tuple(works), base.get_output_embeddings().weight.numel()
        )
        self.keep = torch.ones(0)
        """bool [L, B, T] of the last pass: which layers ran for each token."""

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden state (after the last norm), [B, T, d], and each token's true cost (see core.cost), float
        [B, T]. input_ids, position_ids: int64 [B, T], positions restarting at 0 at each document."""
        runner, policy = self.model.runner, self._set()
        runner.position_ids = position_ids
        context = runner.context(runner.new_cache(input_ids.shape[1], len(input_ids)))
        hidden = self.model.adapter.final_norm(runner.forward(input_ids, context, policy=policy).final)
        scores, shape = policy.scores if policy is not None else {}, input_ids.shape
        keep = {i - 1: g > self.technique.config.threshold for i, g in scores.items()}
        trace = Trace(self.ledger.program, {s: Decision.hard(kept.reshape(-1)) for s, kept in keep.items()})
        offsets = torch.full((shape.numel(),), self.offset, device=input_ids.device)
        self.keep = trace.keep(offsets).view(-1, *shape)
        return hidden, token_cost(self.ledger, Tokens(offsets, position_ids.reshape(-1)), trace).view(shape)

    def _set(self) -> Any:
        """Turn the knobs as `dial` and `offset` say; a policy for one pass, None for the base."""
        if self.offset == math.inf:
            return None
        shift = self.offset if self.dial == "logit" else 0.0
        threshold = 0.5 if self.dial == "logit" else 1 / (1 + math.exp(self.offset))
        threshold = min(threshold, math.nextafter(1.0, 0.0))  # economize refuses 1
        for bias, trained in self.biases.items():
            bias.data.copy_(trained + shift)
        self.technique.config = dataclasses.replace(self.technique.config, threshold=threshold)
        return self.technique.make_policy()


def load_peer(
    folder: str | Path, model: str = "smollm2-135m-instruct", dtype: str = "bfloat16", device: str = "auto"
) -> Peer:
    """The peer trained into `folder` (its `final` is read) on a fresh base."""
    base, _ = load_base(model, dtype, device)
    return Peer(load(base, str(Path(folder) / "final")).eval())


def train(args: argparse.Namespace) -> None:
    """Train the technique on the rows of our own run in the folder `args.run`."""
    settings = json.loads((args.run / "train.json").read_text())
    ours = TrainConfig(
        **{field.name: settings[field.name] for field in dataclasses.fields(TrainConfig) if field.name in settings}
    )
    # eager: scaled_dot_product_attention's bf16 backward is some twenty times slower on a CPU
    base, tokenizer = load_base(ours.model, ours.dtype, attn_implementation="eager")
    records, _ = holdout(read(ours.data, drop=ours.drop_sources), 0.01, ours.seed)
    targets = "all" if ours.objective == "distill" else "assistant"
    rows = prepare(records, tokenizer, ours.length, seed=ours.seed, targets=targets, cache_dir=args.run / "rows")
    objective = FlexiDepthObjective(layer_penalty=args.penalty, ce_weight=1.0 - args.kl, kl_weight=float(args.kl))
    config = FlexiDepthConfig(router_bias=args.bias)
    fit_rows(base, rows, args.output, args.steps, objective, config, ours.batch, ours.seed, args.resume)


def fit_rows(
    base: Any,
    rows: PackedDataset,
    output: Path,
    steps: int,
    objective: FlexiDepthObjective,
    config: FlexiDepthConfig,
    batch: int = 8,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """economize's own `fit`, with its defaults, on packed rows; the weights go to `output`/final."""
    torch.manual_seed(seed)
    model = apply(base, config)
    model.runner = PackedRunner(model.adapter)
    source = LoaderSource(Rows(rows, batch, seed, model.runner))
    print(*(f"{k}={v}" for k, v in dataclasses.asdict(objective.defaults).items()), rows.stats)
    own = {"steps": steps, "output_dir": output, "seed": seed, "resume": resume}
    fit(model, source, objective, **own, log_every=10, save_every=100, callbacks=[print])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--penalty", type=float, default=1e-3, help="weight of the squared sum of gates")
    parser.add_argument("--bias", type=float, default=5.0, help="where the gates' logits start")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kl", action="store_true", help="distil from the base instead of cross-entropy")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
