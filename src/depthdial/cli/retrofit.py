"""`depthdial retrofit`: a base as a recursive model, with fewer blocks that are visited several times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli.options import Json


def retrofit(
    model: Annotated[str, typer.Argument(help="Short name, Hugging Face hub id, folder or GGUF file of the base.")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    loops: Annotated[int, typer.Option(help="Visits of each block; must divide the number of layers.")] = 2,
    init: Annotated[
        str,
        typer.Option(
            help="Blocks are layers evenly spread (stepwise), means of the layers they stand for (average), or "
            "the first ones (lower)."
        ),
    ] = "stepwise",
    lora: Annotated[
        int, typer.Option(help="Rank of each visit's own change; 0: none. As much as the widest map has is exact.")
    ] = 64,
    dtype: Annotated[
        str, typer.Option(help="Of the blocks: bfloat16 or float32. Changes are in float32.")
    ] = "bfloat16",
    json: Json = False,
) -> None:
    """Make a recursive model of a base: fewer blocks, each visited several times with a low-rank change per visit."""
    import contextlib
    import sys
    from json import dumps

    from depthdial.models.ahead import config_ahead
    from depthdial.models.base import load_base
    from depthdial.models.export import check_free, export
    from depthdial.models.fingerprint import fingerprint
    from depthdial.models.retrofit import check
    from depthdial.models.retrofit import retrofit as make

    check_free(output)
    if (config := config_ahead(model)) is not None:
        check(config, loops, init, lora)
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints while loading
        base, tokenizer = load_base(model, dtype, "cpu")
        new = make(base, loops, init, lora)
        folder = export(new.model, tokenizer, output)
    facts = {
        "folder": str(folder),
        "model_type": new.model.config.model_type,
        "blocks": new.model.config.num_hidden_layers,
        "visits": base.config.num_hidden_layers,
        "rank": lora,
        "covered": round(new.covered, 4),
        "parameters": sum(weight.numel() for weight in new.model.parameters()),
        "parameters_of_base": sum(weight.numel() for weight in base.parameters()),
        "weights": fingerprint(new.model).weights,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    if json:
        print(dumps(facts))
        return
    print(f"{folder}: {facts['blocks']} blocks for {facts['visits']} layers, {facts['bytes'] / 1e6:.0f} MB")
    print(
        f"its changes of rank {lora} make up for {new.covered:.1%} of what layers differ from their blocks (squared); "
        f"train them: depthdial train --model {folder} --method recursive --objective lm ..."
    )
