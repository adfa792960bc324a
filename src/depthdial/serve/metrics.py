"""Prometheus figures: vLLM's names where the meaning is the same, `depthdial:` for depth."""

from __future__ import annotations

from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from depthdial.serve.generation import Delta, Generation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS = tuple(float(2**i) for i in range(16))
COSTS = tuple(i / 20 for i in range(1, 25))

METERS = {
    "read_tokens": "Prompt tokens that ran.",
    "read_cost": "Their true cost, in tokens of the dense model.",
    "written_tokens": "Written tokens that ran.",
    "written_cost": "Their true cost, in tokens of the dense model.",
}
"""What the engine counts apart of what is read and of what is written (`engine.stats`)."""


class Metrics:
    """All figures of one server. Engine counts that begin again when its process does go on rising here."""

    def __init__(self, name: str):
        self.registry = CollectorRegistry()
        self._label = {"model_name": name}
        gauge, counter = self._gauge, self._counter
        self.running = gauge("vllm:num_requests_running", "Texts that are being generated.")
        self.waiting = gauge("vllm:num_requests_waiting", "Texts that wait.")
        self.cache = gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.")
        self.budget = gauge("depthdial:budget", "True cost asked for where a request names none.")
        self.prompt_budget = gauge("depthdial:prompt_budget", "The same of what is read.")
        self.up = gauge("depthdial:engine_up", "1 while the engine's process is there.")
        self.restarts = counter("depthdial:engine_restarts", "How often the engine's process was lost.")
        self.preemptions = counter("vllm:num_preemptions", "Texts that lost their pages and were computed again.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests that were taken.")
        self.tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.cache_hits = counter("vllm:prefix_cache_hits", "Prompt tokens that came from the prefix cache.")
        self.cache_queries = counter("vllm:prefix_cache_queries", "Prompt tokens that were looked for in it.")
        self.success = Counter(
            "vllm:request_success", "Texts that ended.", ["model_name", "finished_reason"], registry=self.registry
        )
        self.errors = Counter(
            "depthdial:requests_refused", "Requests answered with an error.", ["model_name", "status"],
            registry=self.registry,
        )  # fmt: skip
        histogram = self._histogram
        self.first = histogram("vllm:time_to_first_token_seconds", "From request to first token.", SECONDS)
        self.between = histogram("vllm:inter_token_latency_seconds", "From one token to the next.", SECONDS)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From request to the end of its answer.", SECONDS)
        self.prompt_length = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.length = histogram("vllm:request_generation_tokens", "Tokens generated for a text.", TOKENS)
        self.token_cost = histogram("depthdial:token_cost", "True cost of the pass over a written token.", COSTS)
        self.depth: Histogram | None = None
        self.relative = gauge("depthdial:relative_cost", "Mean true cost of the passes over written tokens.")
        self.prompt_relative = gauge("depthdial:prompt_relative_cost", "Mean true cost of prompt tokens that ran.")
        self.meters = {name: counter(f"depthdial:{name}", text) for name, text in METERS.items()}
        self.skip_ratio = Gauge(
            "depthdial:layer_skip_ratio", "Share of all tokens, prompts too, for which a layer did not run.",
            ["model_name", "layer"], registry=self.registry,
        )  # fmt: skip
        self._totals = dict.fromkeys(METERS, 0.0)
        self._last_counts: dict[str, int] = {}

    def _gauge(self, name: str, text: str) -> Any:
        return Gauge(name, text, ["model_name"], registry=self.registry).labels(**self._label)

    def _counter(self, name: str, text: str) -> Any:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(**self._label)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self.registry).labels(**self._label)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def on_load(self, facts: dict[str, Any]) -> None:
        """An engine is there."""
        self.up.set(1)
        self._last_counts = {}
        if self.depth is None:  # its buckets are the model's layers
            buckets = tuple(float(i) for i in range(facts["layers"] + 1))
            self.depth = self._histogram("depthdial:token_depth", "Layers run for a written token.", buckets)

    def on_loss(self) -> None:
        """The engine's process is gone."""
        self.up.set(0)
        self.running.set(0)
        self.waiting.set(0)
        self.restarts.inc()

    def counts(self, counts: dict[str, Any]) -> None:
        """The engine's own counts, since it was started."""
        self.running.set(counts["running"])
        self.waiting.set(counts["waiting"])
        self.cache.set(counts["cache"])
        if counts["budget"] is not None:
            self.budget.set(counts["budget"])
        reading = counts["budget"] if counts["prompt_budget"] == "same" else counts["prompt_budget"]
        if reading is not None:
            self.prompt_budget.set(reading)
        totals = {"preemptions": self.preemptions, "cached_tokens": self.cache_hits, **self.meters}
        for name, counter in totals.items():
            counter.inc(counts[name] - self._last_counts.get(name, 0))
            if name in self._totals:
                self._totals[name] += counts[name] - self._last_counts.get(name, 0)
            self._last_counts[name] = counts[name]
        for gauge, kind in ((self.relative, "written"), (self.prompt_relative, "read")):
            if tokens := self._totals[f"{kind}_tokens"]:
                gauge.set(self._totals[f"{kind}_cost"] / tokens)
        if counts["tokens"]:
            for layer, ran in enumerate(counts["layer_tokens"]):
                self.skip_ratio.labels(**self._label, layer=str(layer)).set(1 - ran / counts["tokens"])

    def on_tokens(self, generation: Generation, part: Delta) -> None:
        """Tokens have come."""
        now = monotonic()
        # the first token came from the pass over the prompt's last one, which counts as read
        ran = part.tokens if generation.counts[part.choice] else part.tokens[1:]
        if part.tokens:
            last = generation.last_token[part.choice]
            if not generation.counts[part.choice]:
                self.first.observe(now - generation.start)
            else:
                for _ in part.tokens:
                    self.between.observe((now - last) / len(part.tokens))
            generation.last_token[part.choice] = now
            generation.counts[part.choice] += len(part.tokens)
            self.tokens.inc(len(part.tokens))
        for token in ran:
            assert self.depth is not None
            self.depth.observe(token.depth)
            self.token_cost.observe(token.cost)
        if part.finish is not None:
            self.success.labels(**self._label, finished_reason=part.finish).inc()
            self.length.observe(generation.counts[part.choice])

    def on_end(self, generation: Generation, end: dict[str, Any]) -> None:
        """All choices of a request are done."""
        self.whole.observe(monotonic() - generation.start)
        self.prompt_length.observe(generation.prompt_tokens)
        self.prompt_tokens.inc(generation.prompt_tokens)
        self.cache_queries.inc(generation.prompt_tokens)

    def on_cancel(self, generation: Generation) -> None:
        """Whoever asked is gone, or waited too long."""
        self.success.labels(**self._label, finished_reason="abort").inc(generation.open)

    def on_error(self, status: int) -> None:
        """An error was answered."""
        self.errors.labels(**self._label, status=str(status)).inc()
