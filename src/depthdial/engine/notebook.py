"""How things look in a notebook. An output is coloured text with a legend, and a card for each token under the pointer:
HTML and CSS alone, which fetch nothing, and show a model's text without obeying it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from depthdial.core.colours import colours, place
from depthdial.core.printable import CONTROLS

# A card stands below its text, so that no edge cuts it. It is hidden by its own style, too: where a viewer drops style
# sheets, it stays hidden.
_STYLE = """<style>
.depthdial{line-height:1.9;max-width:60em}
.depthdial p{position:relative;margin:.3em 0;white-space:pre-wrap;overflow-wrap:anywhere}
.depthdial .about{color:#767676;font-size:.85em;line-height:1.5}
.depthdial .t{padding:.1em 0;cursor:default}
.depthdial .t:hover,.depthdial .t:focus{outline:2px solid #b3261e}
.depthdial .t:hover>.card,.depthdial .t:focus>.card{display:block!important}
.depthdial .card{position:absolute;left:0;top:100%;z-index:9;width:max-content;max-width:22em;padding:.5em .8em;
background:#fff;color:#1d1f23;border:1px solid #bbb;border-radius:6px;box-shadow:0 4px 16px #0003;font-size:.85em;
line-height:1.5;white-space:normal;pointer-events:none}
.depthdial .cells{display:flex;gap:1px;height:1em;margin:.3em 0}
.depthdial .cells i{width:.5em;background:#e4e2dc}
.depthdial .cells i.ran{background:#575d6d}
.depthdial .legend i{display:inline-block;width:.7em;height:.8em;vertical-align:-.1em}
</style>"""


def html(output: Any) -> str:
    """All samples of an `output.RequestOutput`, each token on the colour of the layers that it took."""
    pieces = [piece for sample in output.samples for piece in sample.pieces]
    depths = [piece.depth for piece in pieces] or [0]
    least, most, count = min(depths), max(depths), _layers(pieces)
    legend = "".join(f'<i style="background:{colours(place(d, least, most))[1]}"></i>' for d in range(least, most + 1))
    prompt = "" if output.prompt is None else f'<p class="about">{_text(output.prompt)}</p>'
    texts = "".join(_sample(sample, least, most, count) for sample in output.samples)
    read = "" if math.isnan(output.prompt_cost) else f", read at {output.prompt_cost:.3f}"
    about = "".join(f"<div>{_about(sample, count)}{read}</div>" for sample in output.samples)
    return (
        f'{_STYLE}<div class="depthdial">{prompt}{texts}<div class="about">{about}'
        f'<div class="legend">{least} {legend} {most} layers</div></div></div>'
    )


def llm_in_words(llm: Any) -> str:
    """An `LLM` in one line: its model, its plug-in, what texts cost that do not say."""
    config, plugin = llm.model.config, llm.plugin
    name = config.name_or_path if config.name_or_path and not Path(config.name_or_path).exists() else config.model_type
    return (
        f"LLM({name}, {llm.layers} layers, plugin {None if plugin is None else plugin.name or 'unnamed'}, "
        f"budget {llm.budget}, prompt_budget {llm.prompt_budget})"
    )


def _sample(sample: Any, least: int, most: int, count: int) -> str:
    tokens = []
    for number, piece in enumerate(sample.pieces):
        letters, background = colours(place(piece.depth, least, most))
        chance = None if sample.logprobs is None else sample.logprobs[number].get(piece.token_id)
        tokens.append(
            f'<span class="t" tabindex="0" style="color:{letters};background:{background}">{_text(piece.text)}'
            f'<span class="card" style="display:none">{_card(piece, count, chance)}</span></span>'
        )
    error = "" if sample.error is None else f' <span class="about">({_text(sample.error)})</span>'
    return f"<p>{''.join(tokens)}{error}</p>"


def _card(piece: Any, count: int, chance: float | None) -> str:
    ran = _ran(piece, count)
    cells = "".join(f"<i{' class=ran' if each else ''}></i>" for each in ran)
    lines = [f"<b>{_text(repr(piece.text)[1:-1])}</b> · id {piece.token_id}", f"{piece.depth} of {count} layers"]
    lines += [f'<span class="cells">{cells}</span>true cost {piece.cost:.3f} of dense']
    lines += [] if chance is None else [f"probability {math.exp(chance):.3f}"]
    return "<br>".join(lines)


def _about(sample: Any, count: int) -> str:
    depths = [piece.depth for piece in sample.pieces]
    if not depths:
        return f"no token ({sample.finish_reason})"
    mean = sum(depths) / len(depths)
    return f"{len(depths)} tokens, {mean:.1f} of {count} layers on average, true cost {sample.cost:.3f} of dense"


def _layers(pieces: Sequence[Any]) -> int:
    """How many layers there are: up to the highest that any token ran."""
    highest = (len(bits.rstrip("0")) for bits in map(_bits, pieces))
    return max([*highest, *(piece.depth for piece in pieces)], default=0)


def _ran(piece: Any, count: int) -> list[bool]:
    """Of each layer, whether it ran, the first one first."""
    return [bit == "1" for bit in _bits(piece).ljust(count, "0")[:count]] if piece.layers else [True] * count


def _bits(piece: Any) -> str:
    return "".join(f"{byte:08b}" for byte in piece.layers)


def _text(text: str) -> str:
    return escape(text.translate(CONTROLS)).replace("\n", "↵\n")
