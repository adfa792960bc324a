"""One training step: the loss by hand; many small batches are one large one, down to the Trainer's last weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from depthdial.methods import Balcony, FlexiDepth, Random, Static, method_named
from depthdial.models.convert import convert
from depthdial.train.budget import BudgetControl
from depthdial.train.config import TrainConfig
from depthdial.train.lesson import Lesson, balance, row_keys
from depthdial.train.trainer import run_trainer

Batch = dict[str, Tensor]
FIELDS = {"first": 2, "router_ratio": 4, "adapter_ratio": 4, "start": 0.0, "alpha": 0.02}
objectives = pytest.mark.parametrize("objective", ["lm", "distill"])
controlled = pytest.mark.parametrize("held", [False, True], ids=["alpha", "budget"])


@pytest.fixture
def make(tiny_model: Callable, adapted: Callable) -> Callable[..., Lesson]:
    """`make(objective, held)`: a lesson on a fresh tiny Llama of 4 layers; the same numbers each time."""

    def make(objective: Any, held: bool, method: Any = None) -> Lesson:
        model: Any = adapted(tiny_model("llama", num_hidden_layers=4), method or method_named("flexidepth", FIELDS))
        floor = model.converted.ledger.floor
        lesson = Lesson(model, objective, BudgetControl(floor + 0.05, 0.95, floor, spread=1.0) if held else None)
        lesson.progress = 1.0
        return lesson

    return make


def rows_of(batch: Batch) -> list[Batch]:
    return [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(len(batch["labels"]))]


def gradients(lesson: Lesson) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in lesson.named_parameters() if p.grad is not None}


def model_of(lesson: Lesson) -> Any:
    return lesson._base[0].halves.decoder


@objectives
@controlled
def test_the_gradient_of_a_batch_is_the_sum_of_its_rows(make: Callable, packed: Callable, objective: str, held: bool):
    batch = packed(4, 16)
    items = (batch["labels"] != -100).sum()
    big, small = make(objective, held), make(objective, held)
    if held:
        for lesson in (big, small):
            lesson.control.price += 0.3
    whole = big(**batch)["loss"]
    whole.backward()
    total = torch.zeros(())
    for row in rows_of(batch):
        loss = small(**row, num_items_in_batch=items)["loss"]
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, whole.detach())
    result = gradients(big)
    assert set(result) == {name for name, _ in big.named_parameters()} and all(g.any() for g in result.values())
    torch.testing.assert_close(gradients(small), result, rtol=1e-3, atol=1e-5)
    for name in big.totals:
        torch.testing.assert_close(small.totals[name], big.totals[name], rtol=1e-4, atol=1e-4)
    if held:
        for name, buffer in big.control.named_buffers():
            torch.testing.assert_close(dict(small.control.named_buffers())[name], buffer, rtol=1e-3, atol=1e-4)
        big.hold()
        small.hold()
        assert big.divisor == small.divisor == float(items)
        torch.testing.assert_close(small.control.offsets, big.control.offsets, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small.control.price, big.control.price, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [Random(adapter_ratio=4), Static(order=(3, 1), count=1, adapter_ratio=4)], ids=str)
def test_baselines_train_under_their_own_route(make: Callable, packed: Callable, method: Any):
    lesson = make("distill", False, method)
    lesson(**packed())["loss"].backward()
    assert any(g.any() for g in gradients(lesson).values())
    assert lesson.totals["cost"] / lesson.totals["tokens"] < 1


@objectives
def test_the_loss_by_hand(make: Callable, packed: Callable, tiny_model: Callable, adapted: Callable, objective: str):
    lesson, batch = make(objective, False), packed(3, 16)
    ids, labels, positions = (batch[name] for name in ("input_ids", "labels", "position_ids"))
    loss = lesson(**batch)["loss"]
    model: Any = adapted(tiny_model("llama", num_hidden_layers=4), method_named("flexidepth", FIELDS))
    logits = model(ids, position_ids=positions, use_cache=False).logits
    real, skip = labels != -100, model.route.last.trace.stack("score", "attn").sum(0).square().view_as(labels) * 0.02
    if objective == "lm":
        assert not real[positions == 0].any(), "a document's first token follows nothing"
        task = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    else:
        base = tiny_model("llama", num_hidden_layers=4)
        teacher = base(ids, position_ids=positions, use_cache=False).logits
        kl = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
        task = kl.sum(-1)[:, :-1][real[:, 1:]].sum()  # where a target is predicted
    torch.testing.assert_close(loss, (task + skip[real].sum()) / real.sum(), rtol=1e-4, atol=1e-5)
    calls = {name: float(value) for name, value in lesson.totals.items()}
    assert calls["tokens"] == int(real.sum())
    assert calls["loss"] == pytest.approx(float(task.detach()), rel=1e-4)
    assert calls["layers"] == int(model.route.layers_used[real].sum())
    assert calls["cost"] == pytest.approx(float(model.route.token_cost()[real].sum()), rel=1e-5)


def test_first_tokens_are_no_targets_even_if_labelled(make: Callable, packed: Callable):
    """The token before a document's first one belongs to another document."""
    batch = packed(2, 16)
    plain = make("lm", False, FlexiDepth(**{**FIELDS, "alpha": 0.0}))(**batch, num_items_in_batch=1)["loss"]
    labels = batch["labels"].where(batch["position_ids"] > 0, batch["input_ids"])
    options = {**batch, "labels": labels}
    again = make("lm", False, FlexiDepth(**{**FIELDS, "alpha": 0.0}))(**options, num_items_in_batch=1)["loss"]
    torch.testing.assert_close(again, plain)


def test_padding_is_not_learned_from(make: Callable, packed: Callable):
    """Rows end in a document of padding, without targets: what stands there changes nothing."""
    batch, other = packed(2, 16), packed(2, 16)
    for options in (batch, other):
        options["labels"][:, 12:] = -100
        options["position_ids"][:, 12:] = torch.arange(4)
    other["input_ids"][:, 12:] = 5
    # a row's key sees all of its tokens, so with a control the budget would be another
    a, b = (make("distill", False)(**given)["loss"] for given in (batch, other))
    torch.testing.assert_close(a, b)


def test_a_row_without_targets_is_harmless(make: Callable, packed: Callable):
    batch = packed(4, 16)
    batch["labels"][0] = -100
    for objective in ("lm", "distill"):
        lesson = make(objective, True)
        for row in rows_of(batch):
            lesson(**row, num_items_in_batch=torch.tensor(20))["loss"].backward()
        assert all(g.isfinite().all() for g in gradients(lesson).values())
        lesson.hold()
        assert all(buffer.isfinite().all() for buffer in lesson.control.buffers())


def test_rows_are_trained_at_the_budgets_drawn_for_them(make: Callable, packed: Callable):
    lesson, batch = make("distill", True), packed(4, 16)
    calls = []
    converted = lesson._base[0].converted

    def watched(*_: Any) -> None:
        calls.append((converted.settings.offset, converted.settings.training))

    model_of(lesson).register_forward_pre_hook(watched)
    lesson(**batch)
    budgets = lesson.control.draw(row_keys(batch["input_ids"]), 1.0)
    (_, first), (teacher, _), (student, training) = calls
    assert not first and teacher == math.inf and training
    assert torch.equal(student, lesson.control.offset(budgets))
    assert not converted.settings.training and converted.settings.key is None


def test_rows_read_in_full_are_written_at_several_budgets(make: Callable, packed: Callable):
    """The base reads, targets alone run by the route, each row at budgets of its own; nothing else has a cost."""
    lesson, batch = make("distill", True), packed(2, 16)
    lesson.copies = 3
    batch["labels"][:, :5] = -100
    text = batch["labels"] != -100
    follows = F.pad(text[:, 1:] & (batch["position_ids"][:, 1:] != 0), (0, 1))
    lesson(**batch, read_in_full=torch.tensor(True))["loss"].backward()
    assert lesson.totals["tokens"] == 3 * (text & follows).sum() > 0
    keep = lesson._base[0].converted.route.keep()[2:]  # [layers, rows * copies, tokens]
    assert keep.shape[1] == 6 and 0 < keep.float().mean() < 1
    tokens = lesson._base[0].converted.route.last.tokens
    assert len(set(tokens.rows(tokens.offset)[:, 0].tolist())) == 6, "each copy of a row has a budget of its own"
    assert lesson.totals["loss"] > 0 and all(g.isfinite().all() for g in gradients(lesson).values())


def test_keys_tell_rows_apart_and_follow_them(packed: Callable):
    ids = packed(64, 16)["input_ids"]
    keys = row_keys(ids)
    assert len(set(keys.tolist())) == 64 and (keys >= 0).all() and (keys < 2**31).all()
    assert torch.equal(row_keys(ids[5:6]), keys[5:6])
    swapped = ids[:1].clone()
    swapped[0, [2, 3]] = swapped[0, [3, 2]]
    assert not torch.equal(row_keys(swapped), keys[:1])


def test_low_budgets_do_not_drown_high_ones():
    weights = balance(torch.tensor([0.6, 0.8, 0.9, 0.98, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.0, 2.0, 10.0, 10.0]))


def test_the_module_holds_parts_and_control_only(make: Callable):
    lesson = make("distill", True)
    names = set(lesson.state_dict())
    assert all(name.startswith(("parts.", "control.")) for name in names)
    assert {"parts.2_attn.router.bias", "parts.3_mlp.adapter.down.weight", "control.offsets"} <= names
    assert all(p.requires_grad for p in lesson.parameters())


# ---------------------------------------------------------------- the Trainer


class MicroBatches(Dataset[dict[str, Tensor]]):
    """Rows, so many at a time, in their order."""

    def __init__(self, rows: dict[str, Tensor], size: int):
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self.rows["input_ids"]) // self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index * self.size :][: self.size] for name, tensor in self.rows.items()}


@objectives
@controlled
def test_four_rows_at_once_train_like_one_four_times(
    make: Callable, packed: Callable, tmp_path: Path, objective: Any, held: bool
):
    run = []
    for batch, accumulate in ((4, 1), (1, 4)):
        lesson, output = make(objective, held), tmp_path / f"{batch}x{accumulate}"
        output.mkdir()
        config = TrainConfig(
            model="tiny", data=("none",), output=str(output), objective=objective, steps=3, batch=batch,
            accumulate=accumulate, lr=1e-3, warmup=0.0, length=16, device="cpu", dtype="float32",
        )  # fmt: skip
        before = {name: tensor.clone() for name, tensor in lesson.state_dict().items()}
        run_trainer(lesson, MicroBatches(packed(12, 16), batch), config, resume=False)
        after = {name: tensor.clone() for name, tensor in lesson.state_dict().items()}
        assert not any(torch.equal(tensor, before[name]) for name, tensor in after.items() if name[:5] == "parts")
        run.append(after)
    torch.testing.assert_close(run[1], run[0], rtol=1e-3, atol=2e-5)


def test_trained_parts_are_the_models(make: Callable):
    lesson = make("distill", False)
    with torch.no_grad():
        next(iter(lesson.parts.parameters())).fill_(7.0)
    wrapped = [m for m in model_of(lesson).modules() if type(m).__name__ == "Router"]
    assert any((p == 7).all() for m in wrapped for p in m.parameters())


def test_methods_are_told_how_far_training_is(make: Callable, packed: Callable):
    lesson = make("lm", False)
    lesson.progress = 0.7
    lesson(**packed(1, 16))
    assert lesson._base[0].converted.route.last.tokens.progress == 0.7


@objectives
def test_every_exit_learns_from_every_row(tiny_model: Callable, packed: Callable, objective: Any):
    """Of a method that only leaves the base by blocks of its own: the mean by hand over exits and tokens that count."""
    model = convert(tiny_model("llama", num_hidden_layers=4), Balcony(exits=(1, 2), stop=0))
    batch, lesson = packed(), Lesson(model, objective, None)
    loss = lesson(**batch)["loss"]
    loss.backward()
    learned, base = gradients(lesson), lesson._base[0]
    lesson.zero_grad()
    ids, logits = {name: batch[name] for name in ("input_ids", "position_ids")}, {}
    for offset in (0.0, 1.0, math.inf):
        with base.converted.using(offset=offset):
            logits[offset] = base.model(**ids, use_cache=False).logits.log_softmax(-1)
    labels, starts = batch["labels"][:, 1:], batch["position_ids"][:, 1:] == 0
    at = (labels != -100) & ~starts
    total = torch.zeros(())
    for offset in (0.0, 1.0):
        student = logits[offset][:, :-1][at]
        if objective == "distill":
            teacher = logits[math.inf][:, :-1][at].detach()
            total = total + F.kl_div(student, teacher, log_target=True, reduction="sum")
        else:
            total = total + F.nll_loss(student, labels[at], reduction="sum")
    expected = total / (2 * (batch["labels"] != -100).sum())
    torch.testing.assert_close(loss, expected)
    expected.backward()
    assert len(learned) == 2 * 9 and all(grad.any() for grad in learned.values())
    torch.testing.assert_close(learned, gradients(lesson), rtol=1e-4, atol=1e-6)
    layer, head = base.converted.ledger.layers[0].total, base.converted.ledger.head
    cost = sum((n * layer + head) / (4 * layer + head) for n in (2, 3)) / 2
    assert float(lesson.totals["cost"] / lesson.totals["tokens"]) == pytest.approx(cost)
    assert float(lesson.totals["layers"] / lesson.totals["tokens"]) == pytest.approx(2.5)
