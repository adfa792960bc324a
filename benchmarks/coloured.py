"""Five answers coloured by depth, as a picture for docs/results.md and as JSON.

    python benchmarks/coloured.py docs/images/depth.svg [--plugin RUN] [--budget 0.9]

Greedy answers of the model with its plug-in at one budget; the picture is what `depthdial demo` shows in a terminal.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from depthdial import LLM, SamplingParams
from depthdial.maps.terminal import Ramp

PROMPTS = (
    "Repeat after me, word for word: the quick brown fox jumps over the lazy dog.",
    "What is 17 plus 25? Explain each step.",
    "Why is the sky blue?",
    "Write a Python function that returns the largest number in a list.",
    "List the planets of the solar system, nearest to the sun first.",
)
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px;
white-space: pre; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">{matrix}</g></g>
</svg>
"""
"""Rich's own picture without its window frame and without fonts from the network."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--max-tokens", type=int, default=72)
    args = parser.parse_args()
    llm = LLM(args.model, args.plugin, args.budget)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    ramp = Ramp(llm.always_on, llm.layers).on(console)
    told = []
    console.print(ramp.legend())
    for prompt in PROMPTS:
        (out,) = llm.chat(
            [[{"role": "user", "content": prompt}]], SamplingParams(max_tokens=args.max_tokens, temperature=0.0)
        )
        console.print(f"\n> {prompt}", highlight=False, style="bold")
        answer = Text(tab_size=4)
        for piece in out.samples[0].pieces:
            answer.append(piece.text, ramp.style(piece.depth))
        console.print(answer)
        mean = sum(out.depths) / len(out.depths)
        console.print(f"  {mean:.1f} of {llm.layers} layers, true cost {out.cost:.3f}", highlight=False, style="dim")
        pieces = [(piece.text, piece.depth) for piece in out.samples[0].pieces]
        told.append({"prompt": prompt, "cost": out.cost, "pieces": pieces})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(console.export_svg(title="", code_format=SVG, theme=DEFAULT_TERMINAL_THEME))
    args.output.with_suffix(".json").write_text(json.dumps({"budget": llm.budget, "answers": told}, ensure_ascii=False))


if __name__ == "__main__":
    main()
