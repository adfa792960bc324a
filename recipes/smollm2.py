"""The shipped plug-in for SmolLM2-135M-Instruct and the baselines it is compared with, on the same tokens.

    python recipes/sample_base.py SAMPLED.jsonl.gz --tokens 200000
    python recipes/plain_text.py PLAIN_FOLDER
    python recipes/smollm2.py DATA_FOLDER OUTPUT [flexidepth|random|static|fixed_input] --sampled SAMPLED.jsonl.gz
        --plain PLAIN_FOLDER [--start PLUGIN] [--on-policy SHARE] [--steps N]

DATA_FOLDER holds the permissive training files named below (docs/data.md says where they come from). They are
instructions; SAMPLED is the base's own prose, about a fifth of the mix. Layers 0 to 2 and 29 always run, and layer 11,
without which this base falls apart (docs/log.md).
"""

import argparse
import logging
from pathlib import Path

from depthdial.methods import METHODS
from depthdial.train.config import TrainConfig
from depthdial.train.run import train

FILES = ("flan_cot", "gsm8k_train", "mbpp", "oasst_en_100_threads", "p3_t0_sample", "self_instruct_human", "tldr_pages")
SHARE_ALIKE = ("flan_cot/ecqa", "flan_cot/sensemaking", "p3/adversarial_qa", "p3/dbpedia_14", "p3/kilt_*",
               "p3/wiki_bio", "p3/wiki_hop")  # fmt: skip
TWICE_OR_TEST = ("flan_cot/gsm8k", "mbpp/test")
REPEAT = 10  # of the sampled prose: there is little of it, and one epoch of the rest is never reached
PLAIN = {"passage": 10, "dialogue": 12, "short": 3, "single": 1}  # repeats: about two fifths of the mix
ROUTED = {"first": 3, "last": 29, "but": (11,)}
FIELDS = {
    "flexidepth": {**ROUTED, **METHODS["flexidepth"].budgeted},
    "fixed_input": {**ROUTED, **METHODS["flexidepth"].budgeted, "fixed_input": True},
    "random": ROUTED,
    "static": {"selection": "greedy_kl", "length": 13},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("method", choices=FIELDS, nargs="?", default="flexidepth")
    parser.add_argument("--sampled", type=Path, help="what recipes/sample_base.py wrote")
    parser.add_argument("--plain", type=Path, help="what recipes/plain_text.py wrote")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompt-budget", choices=("1.0", "same"), default="1.0")
    parser.add_argument("--same-share", type=float, default=0.15, help="of rows in the papers' form")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--divergence", default="forward")
    parser.add_argument("--on-policy", type=float, default=0.0, help="share of the model's own text")
    parser.add_argument("--refresh", type=int, default=200)
    parser.add_argument("--adapter-ratio", type=int, default=16)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", help="float32 is faster on a CPU without bf16 arithmetic")
    parser.add_argument("--fit-steps", type=int, default=120)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--router-lr", type=float, default=0.3, help="factor on the routers' learning rate")
    parser.add_argument("--start", help="a plug-in to start from instead of the fit")
    parser.add_argument(
        "--order", type=int, nargs="+", help="static: the layers to drop, first first; none are searched"
    )
    parser.add_argument("--detach", action="store_true", help="routers only read")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--heldout-tokens", type=int, default=16384)
    parser.add_argument("--generated-tokens", type=int, default=2048)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prose = [str(args.sampled)] * REPEAT if args.sampled else []
    prose += [str(args.plain / f"{k}.jsonl.gz") for k, n in PLAIN.items() for _ in range(n)] if args.plain else []
    fields = {**FIELDS[args.method], **({"detach": True} if args.detach else {})}
    if "length" not in fields:
        fields["adapter_ratio"] = args.adapter_ratio
    if args.order:
        fields |= {"order": args.order, "length": len(args.order)}
    config = TrainConfig(
        model="smollm2-135m-instruct",
        method="flexidepth" if args.method == "fixed_input" else args.method,
        fields=fields,
        data=(*(str(args.data / f"{name}.jsonl.gz") for name in FILES), *prose),
        drop_sources=(*SHARE_ALIKE, *TWICE_OR_TEST),
        output=str(args.output),
        budget=0.85,
        lowest=0.68,
        steps=args.steps,
        batch=args.batch,
        accumulate=args.accumulate,
        prompt_budget="same" if args.prompt_budget == "same" else 1.0,
        same_share=args.same_share,
        copies=args.copies,
        divergence=args.divergence,
        on_policy=args.on_policy,
        refresh=args.refresh,
        length=args.length,
        dtype=args.dtype,
        fit_steps=args.fit_steps,
        lr=args.lr,
        router_lr=args.router_lr,
        start_from=args.start,
        compile=args.compile,
        save_every=args.save_every,
        heldout_tokens=args.heldout_tokens,
        generated_tokens=args.generated_tokens,
    )
    print(train(config, args.resume))


if __name__ == "__main__":
    main()
