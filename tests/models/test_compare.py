"""Figures at the head equal those of torch's own losses, whatever the chunks and the size of the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.models.compare import CHUNK, Compared, HeadCompare
from depthdial.models.head import Shaping


def case(count: int, scale: float = 1.0) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(8, 50, bias=False)
    head.weight.data.normal_(generator=generator)
    hidden = torch.randn(count, 8, generator=generator) * scale
    return head, hidden, hidden + torch.randn(count, 8, generator=generator), torch.arange(count) % 50


def by_torch(student: Tensor, teacher: Tensor, target: Tensor) -> Compared:
    kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    agree = student.argmax(-1) == teacher.argmax(-1)
    ce, base_ce = (F.cross_entropy(x, target, reduction="none") for x in (student, teacher))
    return Compared(ce, base_ce, kl, agree)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK + 3])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_equals_torch(count, scale):
    head, hidden, teacher, target = case(count, scale)
    with torch.no_grad():
        want = by_torch(head(hidden), head(teacher), target)
    for got, expected in zip(HeadCompare(head)(hidden, teacher, target), want, strict=True):
        assert got.shape == (count,)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_equals_plain():
    head, hidden, teacher, target = case(CHUNK + 3)
    plain, compiled = (
        HeadCompare(head)(hidden, teacher, target),
        HeadCompare(head, compile=True)(hidden, teacher, target),
    )
    for got, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_base_against_itself_is_exact():
    head, hidden, _, target = case(40)
    same = HeadCompare(head)(hidden, hidden, target)
    assert same.kl.eq(0).all() and same.agree.all() and same.ce.equal(same.base_ce)


def test_a_tie_with_the_first_choice_agrees():
    head = nn.Linear(3, 3, bias=False)
    head.weight.data.copy_(torch.eye(3))
    student, teacher = (
        torch.tensor([[2.0, 2.0, 0.0], [2.0, 1.0, 0.0]]),
        torch.tensor([[1.0, 3.0, 0.0], [1.0, 3.0, 0.0]]),
    )
    assert HeadCompare(head)(student, teacher, torch.tensor([0, 0])).agree.tolist() == [True, False]


def test_softcap_and_bias_of_the_head():
    head, hidden, teacher, target = case(5, scale=9.0)
    head = nn.Linear(8, 50)
    with torch.no_grad():
        student, base = ((head(x) / 2.0).tanh() * 2.0 for x in (hidden, teacher))
        want = by_torch(student, base, target)
    got = HeadCompare(head, Shaping(softcap=2.0))(hidden, teacher, target)
    torch.testing.assert_close(got.kl, want.kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.ce, want.ce)
