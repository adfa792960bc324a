"""`depthdial export`: one folder that vLLM runs, or that is ready for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from depthdial.cli import options


def export(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; it must not exist, or be empty.")],
    format: Annotated[
        Literal["vllm", "hf"], typer.Option(help="vllm: what vLLM runs; hf: for the hub, with a card and auto_map.")
    ] = "vllm",
    model: options.Model = options.MODEL,
    plugin: options.Plugin = "default",
    budget: Annotated[
        float | None,
        typer.Option(help="True cost the folder's dial is set to, up to 1.0. [default: what the plug-in recommends]"),
    ] = None,
    prompt_budget: options.PromptBudget = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    allow_other_weights: options.OtherWeights = False,
    push_to: Annotated[
        str | None, typer.Option("--push-to", help="With --format hf: upload to this repository, private if new.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write base, routers, adapters and dial as one folder, for vLLM or the hub."""
    import contextlib
    import sys
    from json import dumps

    from depthdial.models import hub, load
    from depthdial.models.export import check_free, own_config
    from depthdial.models.export import export as write
    from depthdial.serve.vllm.shape import ModelShape

    if push_to is not None and format != "hf":
        raise ValueError("--push-to needs --format hf: the hub's readers look for the card")
    read = options.prompt_budget_of(prompt_budget)
    check_free(output)
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints while loading
        loaded_model, tokenizer = load(
            model, options.plugin_of(plugin), budget, dtype, "cpu", allow_other_weights, read
        )
        config = own_config(loaded_model, budget)
        if format == "vllm":
            ModelShape.of(config, env={})  # refuses what vLLM could not run
            folder = write(loaded_model, tokenizer, output, budget)
        else:
            files = hub.files(loaded_model, config, model, push_to)
            folder = write(loaded_model, tokenizer, output, budget, files, hub.auto_map(config))
    facts = {
        "folder": str(folder),
        "format": format,
        "model_type": config.model_type,
        "budget": config.budget,
        "prompt_budget": config.prompt_budget,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    if push_to is not None:
        facts["pushed_to"] = hub.push(folder, push_to)
    if json:
        print(dumps(facts))
        return
    print(f"{folder}: {facts['model_type']} at budget {config.budget}, {facts['bytes'] / 1e6:.0f} MB")
    if format == "vllm":
        print(f"run it: python -m vllm.entrypoints.openai.api_server --model {folder}")
        read_at = {1.0: "in full", "same": "as answers are written"}.get(
            config.prompt_budget, f"at {config.prompt_budget}"
        )
        print(f"prompts are read {read_at}; DEPTHDIAL_PROMPT_BUDGET=1.0 or =same reads them otherwise")
