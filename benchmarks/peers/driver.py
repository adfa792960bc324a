"""What all peers' drivers share: the lines of JSON they speak (depthdial.evaluate.speed.peers says which).

Nothing of depthdial is imported: each driver runs in the Python of its peer. By hand:

    echo '{"prompts": [[1, 2, 3]], "new_tokens": 64}' | PYTHON benchmarks/peers/NAME_speed.py --model FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Run = Callable[[list[list[int]], int], Answer]
"""Prompts and new tokens in; {"first": seconds, "rest": seconds, "tokens": [[ids], ...]} out."""


def arguments(about: str | None, precisions: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder as save_pretrained writes it")
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


def serve(start: Callable[[], tuple[Answer, Run]]) -> None:
    """Answer requests from standard input until it ends. start: loads the peer; gives what it tells of itself, and how
    it runs. Whatever libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    about, run = start()
    print(json.dumps({"ready": True, **about}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = run(request["prompts"], request["new_tokens"])
        except (ValueError, RuntimeError) as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), file=out)
