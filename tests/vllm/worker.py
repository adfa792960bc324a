"""Run in a process of its own: one vLLM over one exported folder, some prompts, and all that it did, as JSON.

    python worker.py JOB.json RESULT.json

JOB.json: {"folder", "ranks", "batches": lists of prompts (token ids), "tokens", "overrides", "options"}. Each batch is
generated greedily after the one before it, so that a later one can find its beginning in the prefix cache.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from depthdial.serve.vllm.depths import DepthExtension

NAMES = ("self_attn.q_proj", "self_attn.kv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "adapter")


class Counting(DepthExtension):
    """Counts the rows that come into each matrix, from outside: hooks know nothing of decisions."""

    def count(self) -> None:
        model = self.model_runner.get_model()
        self.rows: Counter[str] = Counter()
        for index, layer in enumerate(model.model.layers):
            for path, module in layer.named_modules():
                for name in NAMES:
                    if path == name or path.endswith(f".{name}"):
                        module.register_forward_pre_hook(self._hook(f"{index} {name}"))

    def counted(self) -> dict[str, int]:
        rows, self.rows = dict(self.rows), Counter()
        return rows

    def offsets(self) -> list[float]:
        return self.model_runner.get_model().offsets.tolist()

    def _hook(self, name: str):
        def add(_module: Any, args: tuple) -> None:
            self.rows[name] += args[0].shape[0]

        return add


def main(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportAttributeAccessIssue]

    llm = LLM(
        job["folder"],
        skip_tokenizer_init=True,
        dtype=job.get("dtype", "float32"),
        tensor_parallel_size=job["ranks"],
        distributed_executor_backend="mp" if job["ranks"] > 1 else None,
        worker_extension_cls="worker.Counting",
        hf_overrides=job.get("overrides", {}),
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        **job["options"],
    )
    llm.collective_rpc("count")
    llm.collective_rpc("depthdial_record")
    params = SamplingParams(temperature=0.0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False, logprobs=2)
    batches = []
    for prompts in job["batches"]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        decisions, rows = llm.collective_rpc("depthdial_decisions"), llm.collective_rpc("counted")
        told = [(out.request_id, _steps(out.outputs[0]), out.num_cached_tokens) for out in outputs]
        batches.append({"outputs": told, "decisions": decisions, "rows": rows})
    return {"batches": batches, "offsets": llm.collective_rpc("offsets")}


def _steps(output: Any) -> list[tuple[int, dict[int, float]]]:
    """Each token with the log-probabilities of the likeliest ones."""
    likely = [{token: one.logprob for token, one in step.items()} for step in output.logprobs]
    return list(zip(output.token_ids, likely, strict=True))


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
