"""The dial for generated tokens: what a budget costs while the model writes, measured by letting it write.

Text that the model chose itself is not like text it is given, and the same offset buys another cost there: with the
shipped plug-in answers take more layers than prompts. So the plug-in keeps a curve of its own for it, measured as texts
are written by default: prompts are read by the untouched base, and only what follows them counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.dial import Curve
from depthdial.engine.budgets import Budgets
from depthdial.engine.llm import LLM
from depthdial.engine.output import RequestOutput
from depthdial.engine.sampling import SamplingParams
from depthdial.models.calibration import Batch, Heldout
from depthdial.models.checkpoint import plugin_of
from depthdial.models.converted import converted_of
from depthdial.train.data import Record
from depthdial.train.progress import Progress

TOKENS = 64
"""Tokens generated per prompt."""


def generated_curve(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], tokens: int, seed: int = 0
) -> Curve:
    """Offset, cost and KL over tokens the model generates, drawn as it does by default, for first turns of `records`.

    model: with its plug-in attached, whose curve for text names the offsets to try; tokens: how many to generate at
    each. Raises ValueError if there is no prompt among the records.
    """
    plugin, converted = plugin_of(model), converted_of(model)
    assert plugin is not None
    text = plugin.curves["text"]
    converted.plugin = dataclasses.replace(plugin, curves={"text": text})
    llm = LLM.of(model, tokenizer, budget=1.0)
    llm.budgets = Budgets(model, 1.0, None, hold=False)  # each text at one offset
    prompts = _prompts(llm, records, max(1, tokens // TOKENS))
    params = SamplingParams(max_tokens=TOKENS, seed=seed)
    points, tries = [], _apart(text)
    with Progress("calibrating generation", len(tries)) as progress:
        for offset, cost in tries:
            outputs = llm.generate(prompts, dataclasses.replace(params, budget=min(cost, 1.0)))
            if rows := [_row(out, model.device) for out in outputs if len(out.token_ids) > 1]:
                points.append((offset, *Heldout(model, rows).measure(offset)))
            progress.advance(sum(len(output.token_ids) for output in outputs), cost=cost)
    converted.plugin = plugin
    return Curve.fit(points, text.step)


def _apart(curve: Curve, gap: float = 0.01) -> list[tuple[float, float]]:
    """The points of a curve, (offset, cost), without those that cost nearly the same as the one before."""
    ends = {0, len(curve.offsets) - 1}
    rows = list(zip(curve.offsets, curve.costs, strict=True))
    return [row for i, row in enumerate(rows) if i in ends or row[1] - rows[i - 1][1] >= gap]


def _prompts(llm: LLM, records: Sequence[Record], count: int) -> list[list[int]]:
    """Prompts as they come at inference: in the chat template a first question, after what stands before it; or the
    first tokens of a plain text."""
    prompts: list[list[int]] = []
    for record in records:
        if record.messages and llm.tokenizer.chat_template:
            first = next((i for i, message in enumerate(record.messages) if message["role"] == "user"), None)
            if first is None:
                continue
            ids = llm.chat_tokens(record.messages[: first + 1])
        else:
            plain = record.messages[0]["content"] if record.messages else record.text
            ids = llm.tokenizer(plain, verbose=False)["input_ids"][:32]
        if 0 < len(ids) <= min(256, llm.context - TOKENS):
            prompts.append(ids)
        if len(prompts) == count:
            break
    if not prompts:
        raise ValueError("no held-out record is short enough to be a prompt; give more data")
    return prompts


def _row(output: RequestOutput, device: torch.device) -> Batch:
    """One generated text as a held-out row on `device`; only the passes over its own tokens count."""
    prompt, answer = output.prompt_token_ids, output.token_ids
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=device)
    in_prompt = torch.arange(ids.shape[1], device=device)[None] < len(prompt)
    positions = torch.arange(ids.shape[1], device=device)[None]
    return {"input_ids": ids, "labels": ids.masked_fill(in_prompt, -100), "position_ids": positions, "read": in_prompt}
