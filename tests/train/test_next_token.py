"""One step of pre-training by hand; figures that add up; noise that belongs to the row and the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerState

from depthdial.methods import Dense, MixtureOfDepths, SkipLayer
from depthdial.models.scratch import Spec, fresh
from depthdial.train import processes
from depthdial.train.heldout import measure_heldout
from depthdial.train.next_token import NextToken, Steps, sums, token_losses
from depthdial.train.throughput import matmul_rate, needed_macs, utilisation

SPEC = Spec.parse("3x2@16,ffn=32,vocab=50,context=16")
IDS = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def lesson_of(method: Any) -> tuple[Any, NextToken]:
    model: Any = fresh(SPEC, method).train()
    return model, NextToken(model, seed=0)


def test_the_loss_by_hand():
    model, lesson = lesson_of(SkipLayer(density=0.4, alpha=0.3))
    out = model(input_ids=IDS, use_cache=False)
    loss = lesson(out, IDS)
    shares = torch.stack([d.keep[:, :-1].float().mean() for d in model.route.decisions.values()])
    task = F.cross_entropy(out.logits[:, :-1].reshape(-1, 50), IDS[:, 1:].reshape(-1))
    torch.testing.assert_close(loss, task + 0.3 * (shares - 0.4).square().sum(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    calls, tokens = lesson.totals, 4 * 11
    assert calls["tokens"] == tokens and float(calls["loss"]) == pytest.approx(float(task.detach()) * tokens, rel=1e-5)
    assert float(calls["layers"]) == float(calls["kept"].sum())
    assert torch.equal(calls["kept"], shares * tokens)
    lesson.close()
    assert not model.converted.settings.training and model.converted.settings.key is None


def test_two_processes_share_one_density(monkeypatch: pytest.MonkeyPatch):
    """The loss that each process adds up, over both, is the loss of the whole batch, with its gradient."""

    def gradients(parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        model, lesson = lesson_of(SkipLayer(density=0.1, alpha=5.0))
        shares = []
        for ids in parts:  # what the other process would add to the sum
            model(input_ids=ids, use_cache=False)
            shares.append([d.keep[:, :-1].float().mean() for d in model.route.decisions.values()])
        both = [torch.stack(pair).sum() for pair in zip(*shares, strict=True)]
        monkeypatch.setattr(processes, "world", lambda: len(parts))
        monkeypatch.setattr(processes, "total", lambda t: [a.copy_(b) for a, b in zip(t, both, strict=True)])
        for ids in parts:
            lesson(model(input_ids=ids, use_cache=False), ids, num_items_in_batch=4 * 11).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    torch.testing.assert_close(gradients([IDS[:2], IDS[2:]]), gradients([IDS]), rtol=1e-4, atol=1e-6)


def test_noise_belongs_to_the_row_and_the_step():
    model, lesson = lesson_of(SkipLayer())

    def kept(ids: torch.Tensor, step: int) -> torch.Tensor:
        lesson.step = step
        model(input_ids=ids, use_cache=False)
        return model.route.keep()

    first = kept(IDS, 0)
    assert torch.equal(kept(IDS[2:], 0), first[:, 2:]), "whatever stands beside it"
    assert not torch.equal(kept(IDS, 1), first) and torch.equal(kept(IDS, 0), first)
    model.eval()
    assert torch.equal(kept(IDS, 0), kept(IDS, 1)), "no noise in inference"


def test_methods_are_told_how_far_training_is():
    model, lesson = lesson_of(SkipLayer())
    Steps(lesson).on_step_begin(None, TrainerState(global_step=30, max_steps=40), None)
    assert lesson.step == 30 and model.converted.settings.progress == 0.75


@pytest.mark.parametrize("method", [SkipLayer(), MixtureOfDepths(capacity=0.5), Dense()], ids=str)
def test_held_out_figures_are_those_of_every_row_once(method: Any):
    class Held:
        length = 12

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": IDS[index]}

    model: Any = fresh(SPEC, method)
    result = [measure_heldout(model, Held(), batch, 1000, bf16=False) for batch in (1, 3, 4)]  # pyright: ignore[reportArgumentType]
    for figures in result[1:]:
        assert figures["loss"] == pytest.approx(result[0]["loss"], rel=1e-5)
        assert figures["density_per_layer"] == pytest.approx(result[0]["density_per_layer"], abs=1e-4)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits
    assert result[0]["loss"] == pytest.approx(float(token_losses(logits, IDS).mean()), rel=1e-5)
    assert result[0]["layers"] == pytest.approx(float(model.route.layers_used[:, :-1].float().mean()), abs=1e-4)
    weighed = sums(model.route, 11, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert weighed["tokens"] == 22
    assert float(weighed["layers"]) == pytest.approx(float(model.route.layers_used[[0, 3], :-1].sum()))


def test_needed_work_is_counted_by_what_ran():
    model: Any = fresh(SPEC, SkipLayer())
    ledger = model.converted.ledger
    dense = needed_macs(ledger, 1.0, [1.0] * 3, 15)
    assert dense == ledger.dense + 3 * 8 * ledger.layers[0].attend
    assert needed_macs(ledger, 0.5, [0.5] * 3, 15) == pytest.approx(dense / 2)
    assert utilisation(100.0, 10.0, 2.0, 3000.0) == pytest.approx(0.5)
    assert matmul_rate(torch.device("cpu"), bf16=False, size=64, repeats=1) > 0
