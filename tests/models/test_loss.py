"""The fused losses at the head are autograd's, value and gradient, over several chunks and with weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.models.head import PLAIN, Shaping
from depthdial.models.loss import CHUNK, DIVERGENCES, SAMPLED, HeadLoss, Shortlist, ce_rows, kl_rows

SIZES = [1, 3, CHUNK, 2 * CHUNK + 7]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def head() -> nn.Linear:
    head = nn.Linear(8, 29, bias=False)
    with torch.no_grad():
        head.weight.copy_(numbers(29, 8))
    return head.requires_grad_(False)


def upstream(n: int) -> Tensor:
    """A gradient that differs from token to token."""
    return torch.linspace(-1, 2, n)


def compare(given: Tensor, expected: Tensor, hidden: Tensor, twin: Tensor) -> None:
    torch.testing.assert_close(given, expected)
    n = len(given)
    given.backward(upstream(n))
    expected.backward(upstream(n))
    assert hidden.grad is not None and twin.grad is not None
    torch.testing.assert_close(hidden.grad, twin.grad)


@pytest.mark.parametrize("n", SIZES)
def test_kl(head: nn.Linear, n: int):
    hidden, twin = (numbers(n, 8).requires_grad_() for _ in range(2))
    teacher, weight = numbers(n, 8, seed=1), (numbers(n, seed=2)).clamp_min(0)
    expected = weight * F.kl_div(
        head(twin).log_softmax(-1), head(teacher).log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    compare(HeadLoss(head).kl(hidden[None], teacher, weight[None])[0], expected, hidden, twin)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("n", SIZES)
def test_divergences_of_several_copies(head: nn.Linear, n: int, name: str):
    hidden, twin = (numbers(3, n, 8).requires_grad_() for _ in range(2))
    teacher, weight = numbers(n, 8, seed=1), numbers(3, n, seed=2).clamp_min(0)
    s, t = head(twin).log_softmax(-1), head(teacher).log_softmax(-1).expand(3, n, 29)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    middle = ((s.exp() + t.exp()) / 2).log()
    expected = weight * {"forward": kl(t, s), "reverse": kl(s, t), "js": 2 * kl(s, middle) + 2 * kl(t, middle)}[name]
    loss = HeadLoss(head, divergence=name).kl(hidden, teacher, weight)
    torch.testing.assert_close(loss, expected)
    up = upstream(3 * n).view(3, n)
    loss.backward(up)
    expected.backward(up)
    torch.testing.assert_close(hidden.grad, twin.grad)


@pytest.mark.parametrize("n", SIZES)
def test_ce(head: nn.Linear, n: int):
    hidden, twin = (numbers(n, 8).requires_grad_() for _ in range(2))
    target = torch.randint(0, 29, (n,), generator=torch.Generator().manual_seed(n))
    weight = numbers(n, seed=2).clamp_min(0)
    expected = weight * F.cross_entropy(head(twin), target, reduction="none")
    compare(HeadLoss(head).ce(hidden[None], target, weight[None])[0], expected, hidden, twin)


def test_a_token_of_no_weight_has_no_loss_and_no_gradient(head: nn.Linear):
    hidden = numbers(4, 8).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    for loss in (
        HeadLoss(head).kl(hidden[None], numbers(4, 8, seed=1), weight[None])[0],
        HeadLoss(head).ce(hidden[None], torch.zeros(4, dtype=torch.long), weight[None])[0],
    ):
        assert not loss[weight == 0].any() and loss[weight > 0].all()
        (grad,) = torch.autograd.grad(loss.sum(), hidden)
        assert not grad[weight == 0].any() and grad[weight > 0].any()


def test_equal_students_have_no_kl_at_all(head: nn.Linear):
    hidden = (100 * numbers(5, 8)).requires_grad_()
    loss = HeadLoss(head).kl(hidden[None], hidden.detach(), torch.ones(1, 5))
    loss.sum().backward()
    assert not loss.any() and hidden.grad is not None and not hidden.grad.any()


def test_teacher_and_head_get_no_gradient(head: nn.Linear):
    head.requires_grad_(True)
    teacher = numbers(3, 8, seed=1).requires_grad_()
    HeadLoss(head).kl(numbers(1, 3, 8).requires_grad_(), teacher, torch.ones(1, 3)).sum().backward()
    assert teacher.grad is None and head.weight.grad is None


def test_bf16_hidden_states_give_fp32_losses(head: nn.Linear):
    hidden = numbers(6, 8).bfloat16().requires_grad_()
    loss = HeadLoss(head.bfloat16()).kl(hidden[None], numbers(6, 8, seed=1).bfloat16(), torch.ones(1, 6))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_rows_give_the_gradient_of_their_sum():
    logits = numbers(4, 29).requires_grad_()
    target, weight = torch.tensor([3, 0, 28, 3]), torch.tensor([1.0, 2.0, 0.5, 0.0])
    for loss, grad in (kl_rows(logits, numbers(4, 29, seed=1), weight), ce_rows(logits, target, weight)):
        (expected,) = torch.autograd.grad(loss.sum(), logits)
        torch.testing.assert_close(grad, expected)


def test_heads_that_are_not_supported_are_refused():
    with pytest.raises(ValueError, match="LM heads without bias"):
        HeadLoss(nn.Linear(8, 29))


def buckets(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of `ids` and of all others together."""
    logp = logits.log_softmax(-1)
    rest = torch.ones(logits.shape[-1], dtype=torch.bool)
    rest[ids] = False
    return torch.cat([logp[..., ids], logp[..., rest].logsumexp(-1, keepdim=True)], -1)


@pytest.mark.parametrize("shape", [PLAIN, Shaping(0.5), Shaping(2.0, softcap=1.5)], ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_shortlist_compares_its_tokens_and_a_bucket_of_all_others(head: nn.Linear, name: str, shape: Shaping):
    n = CHUNK + 7
    hidden, twin = (numbers(2, n, 8).requires_grad_() for _ in range(2))
    teacher, weight = numbers(1, 8, seed=1).expand(n, 8) + 0.05 * numbers(n, 8, seed=3), numbers(2, n, seed=2).abs()
    some = Shortlist.of(teacher, head.weight, shape, 3, SAMPLED, key=1)
    assert 3 <= len(some.ids) < 29 and len(some.ids) + len(some.rest) == 29, "all others stand for themselves here"
    s, t = buckets(shape(head(twin)), some.ids), buckets(shape(head(teacher)), some.ids).expand(2, -1, -1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    middle = ((s.exp() + t.exp()) / 2).log()
    expected = weight * {"forward": kl(t, s), "reverse": kl(s, t), "js": 2 * kl(s, middle) + 2 * kl(t, middle)}[name]
    loss = HeadLoss(head, shape, divergence=name, shortlist=3).kl(hidden, teacher, weight)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad)


def test_a_shortlist_of_the_whole_vocabulary_is_the_whole_loss(head: nn.Linear):
    hidden, twin = (numbers(2, 9, 8).requires_grad_() for _ in range(2))
    teacher, weight = numbers(9, 8, seed=1), numbers(2, 9, seed=2).abs()
    loss, expected = HeadLoss(head, shortlist=29).kl(hidden, teacher, weight), HeadLoss(head).kl(twin, teacher, weight)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad)


def test_a_sample_of_the_rest_stands_for_its_number():
    head = numbers(4000, 8) * 0.3
    some = Shortlist.of(numbers(5, 8, seed=1), head, PLAIN, 4, SAMPLED, key=3)
    assert len(some.rest) == SAMPLED and not set(some.rest.tolist()) & set(some.ids.tolist())
    x, others = numbers(5, 8, seed=2), torch.ones(4000, dtype=torch.bool)
    others[some.ids] = False
    true = (x @ head[others].T).logsumexp(-1)
    torch.testing.assert_close((x @ head[some.rest].T).logsumexp(-1) + some.scale, true, atol=0.1, rtol=0)
    again, other = (Shortlist.of(numbers(5, 8, seed=1), head, PLAIN, 4, SAMPLED, key=k).rest for k in (3, 4))
    assert torch.equal(again, some.rest) and not torch.equal(other, some.rest)
