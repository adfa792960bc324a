"""`depthdial serve`: an OpenAI-compatible server, with a page that shows depth as it happens."""

from __future__ import annotations

from typing import Annotated

import typer

from depthdial.cli import options


def serve(
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: options.Budget = None,
    prompt_budget: options.PromptBudget = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere: set an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Texts generated at a time.")] = 16,
    cache_tokens: Annotated[int | None, typer.Option(help="Room of the KV cache. [default: up to a gigabyte]")] = None,
    max_queue: Annotated[int, typer.Option(help="Texts that may wait; one more is answered 429.")] = 256,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 2**20,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="[default: what the context holds]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 2048,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 600.0,
    max_connections: Annotated[int, typer.Option(help="Connections at a time, as far as files may be open.")] = 1024,
    watchdog: Annotated[
        float, typer.Option(help="Seconds of silence after which the engine is restarted; more than a pass may take.")
    ] = 60.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="DEPTHDIAL_API_KEY", show_envvar=True, help="Ask for this key.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may ask. May be given several times.")
    ] = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    weights: Annotated[str, typer.Option(help="auto, or int8: half the bytes, less exact; CPU only.")] = "auto",
    allow_other_weights: options.OtherWeights = False,
) -> None:
    """Serve a model: the OpenAI API under /v1, a page at /, figures at /metrics. SIGTERM finishes what is begun."""
    import sys

    from depthdial.core.extras import need

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "serving")
    from depthdial.serve.run import run
    from depthdial.serve.settings import EngineSettings, Limits, Settings

    engine = EngineSettings(
        model,
        options.plugin_of(plugin),
        options.budget_of(budget),
        dtype,
        device,
        allow_other_weights,
        max_batch,
        cache_tokens,
        weights,
        options.prompt_budget_of(prompt_budget),
    )
    limits = Limits(
        max_queue, max_body, max_prompt_tokens, max_tokens, timeout, max_connections=max_connections, watchdog=watchdog
    )
    settings = Settings(engine, limits, api_key, tuple(cors_origin or ()))
    print(f"depthdial: loading {settings.name} ...", file=sys.stderr, flush=True)
    run(settings, host, port, lambda line: print(line, flush=True))
