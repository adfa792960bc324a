"""pass@k of generated programs: the interface of Hugging Face's metric `code_eval`, each program in our sandbox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from depthdial.evaluate.harness.sandbox import run


class CodeEval:
    """Runs each candidate with its test; see `sandbox` for what a program can and cannot do."""

    def compute(
        self,
        references: Sequence[str] | None = None,
        predictions: Sequence[Sequence[str]] | None = None,
        k: Sequence[int] = (1,),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """predictions: candidates for each problem; references: the problems' tests. Gives ({"pass@k": ...}, what each
        candidate did), k above the number of candidates left out."""
        details: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for task, (test, candidates) in enumerate(zip(references or (), predictions or (), strict=True)):
            details[task] = []
            for i, candidate in enumerate(candidates):
                result = run(f"{candidate}\n{test}")
                outcome = {"task_id": task, "passed": result == "passed", "result": result, "completion_id": i}
                details[task].append((i, outcome))
        counts = [(len(runs), sum(outcome["passed"] for _, outcome in runs)) for runs in details.values()]
        scores = {
            f"pass@{n}": sum(estimate(total, passed, n) for total, passed in counts) / len(counts)
            for n in k
            if counts and all(total >= n for total, _ in counts)
        }
        return scores, details


def estimate(total: int, passed: int, k: int) -> float:
    """The chance that one of k candidates passes, unbiased (Chen et al., 2021, arXiv 2107.03374)."""
    if total - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(total - passed + 1, total + 1))
