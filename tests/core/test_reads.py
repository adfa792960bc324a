"""A decision that reads what its method does not name is refused at conversion, in one line that names the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.method import Dims, Method, Parts, Seen
from depthdial.core.program import Program, Step, plain
from depthdial.core.reads import FIELDS, check_reads
from depthdial.core.tokens import Tokens, Trace
from depthdial.models.convert import convert


@dataclass(frozen=True)
class Reading(Method):
    """Decides by one thing; what it says that it reads is set by the test."""

    of: str = "x"
    shows: bool = False

    def program(self, depth: int) -> Program:
        if not self.shows:
            return plain(depth, (1,))
        steps = [Step(layer) for layer in range(depth)]
        steps[1] = Step(1, routed="skip", shows=frozenset({"logits"}), head_rows=20)
        return Program(tuple(steps))

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        by: Any = getattr(seen if self.of in ("x", "logits") else tokens, self.of)
        number = by.sum(-1) if self.of in ("x", "logits") else by + 0
        return Decision.hard(number > 0)


def named(reads: set[str], of: str, shows: bool = False) -> Method:
    kind = type("Reading", (Reading,), {"reads": frozenset(reads)})
    return kind(of=of, shows=shows)


def check(method: Method) -> None:
    check_reads(method, method.program(3), {1: {}}, Dims(8, 16), 50)


@pytest.mark.parametrize("of", ["x", "logits", *FIELDS])
def test_what_is_named_can_be_read_and_nothing_else(of: str):
    check(named({of}, of, shows=of == "logits"))
    with pytest.raises(
        ValueError, match=rf"step 1 \(layer of block 1\) of Reading reads '{of}', and its `reads`"
    ) as no:
        check(named({"x", "logits", *FIELDS} - {of}, of, shows=of != "logits"))
    assert "\n" not in str(no.value)


def test_logits_that_no_step_shows_and_unknown_names():
    with pytest.raises(ValueError, match=r"step 1 .* reads logits, and the step does not show them"):
        check(named({"logits"}, "logits"))
    with pytest.raises(ValueError, match=r"Reading\.reads names smell; known: id, key, logits"):
        check(named({"smell"}, "x"))


def test_a_conversion_tries_it_and_leaves_the_model_as_it_was(tiny_model: Callable):
    model = tiny_model("llama")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=r"step 1 .* reads 'position'"):
        convert(model, named({"x"}, "position"))
    assert list(model.state_dict()) == names and not hasattr(model, "converted")
    convert(model, named({"position"}, "position"))


def test_layers_that_leave_unlike_keys_are_refused(tiny_model: Callable):
    model: Any = tiny_model("llama")
    attn = model.model.layers[2].self_attn
    attn.k_proj, attn.v_proj = (nn.Linear(32, 8, bias=False) for _ in range(2))
    with pytest.raises(ValueError, match=r"step 2 \(layer of block 2\): its keys come of \[\(8, 32\)\]") as no:
        convert(model, named({"x"}, "x"))
    assert "\n" not in str(no.value)


def test_a_parameter_is_no_way_around(tiny_model: Callable):
    """By a function of torch, too, as `where` or `stack`."""

    class Where(Reading):
        reads = frozenset({"x"})

        def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
            place: Tensor = torch.where(seen.x.sum(-1) > 0, tokens.position, 0)
            return Decision.hard(place > 0)

    with pytest.raises(ValueError, match=r"step 1 .* of Where reads 'position'"):
        convert(tiny_model("llama"), Where())
