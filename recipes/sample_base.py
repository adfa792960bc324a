"""Text sampled from the base itself: prose to distil on where no licence of a corpus is in the way.

    python recipes/sample_base.py OUTPUT.jsonl.gz [--tokens 600000]

Each document begins after the end-of-document token and is sampled up to `--length` tokens, at temperature 0.8: the
base's own prose, a little surer than its distribution. One JSON object {"source", "text"} a line.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from depthdial.core.whole import whole
from depthdial.models.base import load_base
from depthdial.train.encode import separator_token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--length", type=int, default=255)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", help="float32 is faster on a CPU without bf16 arithmetic")
    args = parser.parse_args()
    loaded, tokenizer = load_base(args.model, dtype=args.dtype)
    model: Any = loaded  # transformers' types say that `generate` is a Tensor
    start = separator_token(tokenizer)
    torch.manual_seed(args.seed)
    with whole(args.output) as part, gzip.open(part, "wt", encoding="utf-8") as file:
        for _ in track(range(-(-args.tokens // (args.batch * args.length))), "Sampling"):
            ids = model.generate(
                torch.full((args.batch, 1), start), attention_mask=torch.ones(args.batch, 1, dtype=torch.long),
                do_sample=True, temperature=0.8, top_k=0, max_new_tokens=args.length, eos_token_id=start,
                pad_token_id=start,
            )  # fmt: skip
            for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
                if len(text.split()) > 20:
                    file.write(json.dumps({"source": "sampled_base", "text": text.strip()}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
