"""The data-set card of a map: what Hugging Face's `load_dataset` and a reader need to know."""

from __future__ import annotations

from depthdial.maps.costs import MapCosts
from depthdial.maps.folder import MapFolder
from depthdial.maps.schema import FORMAT_VERSION, LEXICAL, Facts
from depthdial.maps.store import read_map_parts

CARD = """---
{licence}pretty_name: "Layers per token: {name}"
tags:
- depthdial
- adaptive-depth
- layer-allocation
configs:
- config_name: default
  data_files: data/*.parquet
---

# How many layers each token used: {name}

{texts} texts, {tokens} tokens of `{f.model}` with {plugin}, {f.dial}.
The model has {f.layers} layers; {f.always_on} always run, and {routed} may be skipped. Mean layers used: {mean:.2f}.
{cost}

| task | texts | tokens | of which generated | answers | mean layers |
|---|---|---|---|---|---|
{tasks}

```python
from datasets import load_dataset

texts = load_dataset("FOLDER", split="train")
texts[0]["layers_used"]
```

## Columns

One row per text; lists have one entry per token. Entry t belongs to the pass that **reads** token t and predicts token
t + 1, unless another is said.

| column | what it is |
|---|---|
| `id`, `task`, `group` | texts of one `group` share material: treat them as one draw |
| `forced` | the tokens marked as generated were given (teacher forcing), not drawn from the model |
| `text`, `pieces`, `starts` | the text; each token's piece of it; the character of `text` where the piece starts |
| `token_ids` | int32 |
| `generated` | part of an answer, not of the prompt |
| `token_class` | {classes} |
| `layers_used` | int16: layers run; 0 where no pass read the token |
| `cost` | float32: true cost, relative to dense, of the pass that reads the token |
| `run_mask` | {bytes} bytes per token: bit i, lowest first, is layer i |
| `scores` | float16, flat [tokens, {routed}]: the routers' opinions, 0 to 1, of layers {which}; null if not recorded |
| `entropy` | float32, nats: of the untouched base's prediction after the token, at full depth on the same tokens |
| `surprisal` | float32, nats: of the token itself to the untouched base; NaN for the first token |
| `alternatives` | the base's {f.alternatives} likeliest tokens in the token's place, flat, from the second token on |
| `alternative_probs` | float16: their probabilities; both are null if not recorded |

A model that was pre-trained with its routers has no base; what is said of the base is then of the model itself.

```python
import numpy as np

row = texts.with_format("numpy")[0]
mask = np.frombuffer(row["run_mask"], np.uint8).reshape(-1, {bytes})
ran = np.unpackbits(mask, axis=1, count={f.layers}, bitorder="little").astype(bool)  # [tokens, layers]
```

Depths are the engine's where there is one and no scores are kept, else the reference implementation's, in {f.dtype};
all tokens of a text in one pass. Format version {version},
written by depthdial (`depthdial map`); `map.json` holds the exact settings.
"""


def map_card(folder: MapFolder, facts: Facts, licence: str | None = None) -> str:
    """README.md for a folder whose parts are all there."""
    counts: dict[str, list[float]] = {}
    forced: dict[str, set[bool]] = {}
    costs = MapCosts()
    for part in costs.counting(read_map_parts(folder.path)):
        for row in part.rows:
            tokens = int((row.layers_used > 0).sum())
            figures = (1, len(row.token_ids), int(row.generated.sum()), tokens, int(row.layers_used.sum()))
            sums = counts.setdefault(row.task, [0] * len(figures))
            counts[row.task] = [a + b for a, b in zip(sums, figures, strict=True)]
            if row.generated.any():
                forced.setdefault(row.task, set()).add(row.forced)
    kinds = {(True,): "given", (False,): "drawn", (False, True): "some given", (): "none"}
    tasks = [
        f"| {task} | {c[0]:.0f} | {c[1]:.0f} | {c[2]:.0f} | {kinds[tuple(sorted(forced.get(task, ())))]} "
        f"| {c[4] / max(1, c[3]):.2f} |"
        for task, c in sorted(counts.items())
    ]
    whole = [sum(column) for column in zip(*counts.values(), strict=True)]
    plugin = "no plug-in" if facts.plugin is None else f"the plug-in `{facts.plugin}` ({facts.method})"
    return CARD.format(
        f=facts,
        licence="" if licence is None else f"license: {licence}\n",
        name=f"{facts.model}, {facts.dial}",
        texts=f"{whole[0]:,.0f}",
        tokens=f"{whole[1]:,.0f}",
        plugin=plugin,
        routed=len(facts.routed),
        cost=_cost(costs),
        mean=whole[4] / max(1, whole[3]),
        tasks="\n".join(tasks),
        classes=", ".join(LEXICAL),
        bytes=-(-facts.layers // 8),
        which=", ".join(map(str, facts.routed)) or "none",
        version=FORMAT_VERSION,
    )


def _cost(costs: MapCosts) -> str:
    words = {"prompt_cost": "of prompts", "cost": "of answers"}
    text = ", ".join(f"{interval.mean:.3f} {words[name]}" for name, interval in costs.intervals().items())
    return f"True cost relative to dense: {text}.\n" if text else ""
