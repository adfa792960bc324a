"""Models pre-trained on the same tokens, of equal true cost per token (K/V, routers, LM head counted); resumes.

python recipes/pretrain_equal_flops.py OUTPUT DATA... [--only skip50 dense ...] [--seeds 0 1 2] [--size 8x4@128]
depthdial report OUTPUT --baseline dense --output OUTPUT/report
"""

import argparse
import logging
from pathlib import Path

from depthdial.core.method import Method
from depthdial.methods import Dense, Highway, MixtureOfDepths, Random, SkipLayer, name_of
from depthdial.models.equal_flops import equal, macs, shallow, wide
from depthdial.models.scratch import Spec
from depthdial.train.checkpoints import last_checkpoint
from depthdial.train.pretrain import pretrain
from depthdial.train.pretrain_config import PretrainConfig

PAIRED = ("dense", "skip50", "skip50t2", "mod", "random")
SKIP = {"skip50": (0.5, 1.0), "skip50t2": (0.5, 2.0), "skip25": (0.25, 1.0)}  # density and temperature


def models(spec: Spec) -> dict[str, tuple[Method, Spec]]:
    """Each method with the size at which it costs what SkipLayer at 50 % costs at `spec`."""
    skips = {name: SkipLayer(density=p, temperature=t, noise=0, detach=True) for name, (p, t) in SKIP.items()}
    skip, random = skips["skip50"], Random(rate=0.5, first=0, adapter_ratio=0)
    others = {**skips, "mod": MixtureOfDepths(), "random": random, "highway": Highway()}
    dense = {"dense": shallow(spec, skip), "wide": wide(spec, skip), "full": spec}  # full costs more
    found: dict[str, tuple[Method, Spec]] = {name: (Dense(), size) for name, size in dense.items()}
    return found | {name: (method, equal(macs(spec, skip), spec, method)) for name, method in others.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--only", nargs="+", help="skip50, skip50t2, skip25, dense, wide, full, mod, random, highway")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--size", default="8x4@128,vocab=4096,context=256")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16, help="rows of a step, as long as the context")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, (method, size) in models(Spec.parse(args.size)).items():
        for seed in args.seeds or (range(3) if name in PAIRED else [0]):
            folder = args.output / f"{name}-seed{seed}"
            if (not args.only or name in args.only) and not (folder / "results.json").is_file():
                fields = {**vars(method), **({"seed": seed} if name == "random" else {})}
                config = PretrainConfig(
                    data=tuple(args.data), output=str(folder), size=str(size), method=name_of(method), fields=fields,
                    tokenizer=f"train:{size.vocabulary}", shards=str(args.output / "shards"), heldout_tokens=1 << 20,
                    length=size.context, steps=args.steps, batch=args.batch, seed=seed, dtype="auto", compile=True,
                    gather="on" if name == "mod" else "off", lr=3e-3, router_lr=0.1 if name in SKIP else 1.0,
                )  # fmt: skip
                logging.info("%s: %s", name, pretrain(config, last_checkpoint(folder / "checkpoints") is not None))


if __name__ == "__main__":
    main()
