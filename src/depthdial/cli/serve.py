"""`depthdial serve`: an OpenAI-compatible server, with a page that shows depth as it happens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from depthdial.cli import options
from depthdial.serve.settings import EngineSettings, RequestLimits, ServerSettings


@options.of(EngineSettings, RequestLimits)
def serve(
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: options.Budget = None,
    prompt_budget: options.PromptBudget = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere: set an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="DEPTHDIAL_API_KEY", show_envvar=True, help="Ask for this key.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may ask. May be given several times.")
    ] = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "auto",
    allow_other_weights: options.OtherWeights = False,
    **values: Any,
) -> None:
    """Serve a model: the OpenAI API under /v1, a page at /, figures at /metrics. SIGTERM finishes what is begun."""
    import sys

    from depthdial.core.extras import need

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "serving")
    from depthdial.serve.run import run

    engine = options.settings(
        EngineSettings,
        values,
        model=model,
        plugin=options.plugin_of(plugin),
        budget=options.budget_of(budget),
        dtype=dtype,
        device=device,
        allow_other_weights=allow_other_weights,
        prompt_budget=options.prompt_budget_of(prompt_budget),
    )
    limits = options.settings(RequestLimits, values)
    settings = ServerSettings(engine, limits, api_key, tuple(cors_origin or ()))
    print(f"depthdial: loading {settings.name} ...", file=sys.stderr, flush=True)
    run(settings, host, port, lambda line: print(line, flush=True))
