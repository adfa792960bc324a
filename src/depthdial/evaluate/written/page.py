"""One self-contained page where the texts of all rows are read side by side: no script, nothing is fetched, and no text
of a model is obeyed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from depthdial.core.printable import CONTROLS
from depthdial.evaluate.written.figures import count_repeats
from depthdial.evaluate.written.table import COLUMNS, cells

Figures = Mapping[str, Any]


def texts_page(results: Figures, texts: Sequence[Figures]) -> str:
    """HTML of what `run.run` found."""
    rows, arguments = results["rows"], results["arguments"]
    folder = files("depthdial.evaluate.written").joinpath("page")
    rules = "\n".join(
        f"body:has(#show-{i}:not(:checked)) .r{i} {{ display: none; }}" for i in range(len(rows))
    )  # boxes without a script
    title = f"What {results['model']} writes"
    caption = f"{len(texts)} prompts, up to {arguments['max_tokens']} tokens, greedy; {results['date']}"
    return folder.joinpath("page.html").read_text("utf-8").format(
        title=_text(title),
        style=folder.joinpath("page.css").read_text("utf-8") + rules,
        caption=_text(caption),
        table=_table(rows),
        choices="".join(
            f'<label><input type="checkbox" id="show-{i}" checked> {_text(row["name"])}</label>'
            for i, row in enumerate(rows)
        ),
        body="\n".join(_article(number, text, rows) for number, text in enumerate(texts)),
    )  # fmt: skip


def _table(rows: Sequence[Figures]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in ("", *COLUMNS))
    lines = [
        f"<tr><td>{_text(row['name'])}</td>{''.join(f'<td>{_text(cell)}</td>' for cell in cells(row))}</tr>"
        for row in rows
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _article(number: int, text: Figures, rows: Sequence[Figures]) -> str:
    panes = "".join(_pane(i, row["name"], text["answers"][row["name"]]) for i, row in enumerate(rows))
    return (
        f'<article id="text-{number}"><p class="task">{_text(text["task"])} · {_text(text["id"])}</p>'
        f'<h2>{_text(text["prompt"])}</h2><div class="panes">{panes}</div></article>'
    )


def _pane(i: int, name: str, answer: Figures) -> str:
    again, count = count_repeats(answer["token_ids"])
    figures = [
        f"{len(answer['token_ids'])} tokens",
        f"cost {answer['cost'] / answer['passes']:.3f}",
        f"NLL {-answer['logprob'] / len(answer['token_ids']):.2f}",
        f"repeated {100 * again / max(1, count):.0f} %",
    ]
    end = "" if answer["ended"] else '<span class="cut"> … (no end)</span>'
    return (
        f'<section class="pane r{i}"><h3>{_text(name)}</h3><p class="how">{" · ".join(figures)}</p>'
        f'<p class="text">{_text(answer["text"])}{end}</p></section>'
    )


def _text(text: str) -> str:
    return escape(text.translate(CONTROLS))
