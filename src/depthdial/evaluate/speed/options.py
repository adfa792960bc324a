"""What a speed benchmark is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from depthdial.core.dial import PromptBudget, prompt_budget
from depthdial.evaluate.speed.peers import check_peers
from depthdial.evaluate.speed.subjects import Regime


@dataclass(frozen=True)
class SpeedOptions:
    """What is measured. Raises ValueError, one line, for what makes no sense."""

    model: str = "smollm2-135m-instruct"
    plugin: str | None = "default"
    budgets: tuple[float, ...] = (0.85, 0.75)
    """True costs of the adaptive rows; a model with its own routers has one row, as trained; a bare one has none."""
    prompt_budgets: tuple[PromptBudget, ...] | None = None
    """How prompts are read in the rows of prefill; where texts decode, the first of these. None: 1.0 and "same", or
    "same" alone for a model with its own routers."""
    batches: tuple[int, ...] = (1, 4, 16, 64)
    """Texts that decode together."""
    prefill: tuple[int, ...] = (512, 2048, 8000)
    """Lengths of prompts whose time to the first token is measured."""
    prompt_tokens: int = 32
    """Of the texts that decode."""
    new_tokens: int = 64
    repeats: int = 5
    lossless: bool = False
    int8: bool = False
    """Measure adaptive rows with int8 weights, too; the dense one is always there where it can run."""
    compiled: bool = True
    """Measure Hugging Face compiled, too: a minute or more for each batch."""
    peers: tuple[str, ...] = ()
    peer_pythons: dict[str, str] = field(default_factory=dict)
    """The Python each peer is installed in."""
    random: str | None = None
    """Plug-in of random skipping; None: one made on the spot, for the layers of the plug-in."""
    static: str | None = None
    """Plug-in of the best static layers; None: no such row."""
    text: str | None = None
    """What the prompts are taken from; None: passages that come with the benchmark."""
    dtype: str = "bfloat16"
    allow_other_weights: bool = False
    """Use the plug-in on other weights of the same shape."""
    device: str = "auto"
    seed: int = 0
    unasked: frozenset[str] = frozenset()
    """Of `prefill`, `prompt_tokens` and `new_tokens` those that are our own choice: cut to what the model can hold."""

    def __post_init__(self):
        if not self.batches and not self.prefill:
            raise ValueError("nothing to measure: give --batches, --prefill or both")
        if any(value < 1 for value in (*self.batches, *self.prefill)):
            raise ValueError("--batches and --prefill take whole numbers of at least 1")
        if self.new_tokens < 2 or self.repeats < 1 or self.prompt_tokens < 1:
            raise ValueError("--new-tokens must be at least 2, --repeats and --prompt-tokens at least 1")
        if any(not 0 < budget < 1 for budget in self.budgets):
            raise ValueError("--budgets takes true costs between 0 and 1; the dense engine is measured anyway")
        if self.prompt_budgets == ():
            raise ValueError("--prompt-budget needs at least one way to read a prompt: 1.0, say")
        for budget in self.prompt_budgets or ():
            prompt_budget(budget)
        check_peers(self.peers, self.peer_pythons)

    def fit(self, context: int) -> SpeedOptions:
        """The same within a model's context, as far as nobody asked for lengths that are beyond it."""
        lengths: dict[str, Any] = {
            "prefill": tuple(dict.fromkeys(min(length, context - 1) for length in self.prefill)),
            "prompt_tokens": max(1, min(self.prompt_tokens, context // 2)),
        }
        lengths = {name: value for name, value in lengths.items() if name in self.unasked}
        if "new_tokens" in self.unasked:
            room = context - lengths.get("prompt_tokens", self.prompt_tokens)
            lengths["new_tokens"] = max(2, min(self.new_tokens, room))
        return replace(self, **lengths)

    @property
    def regimes(self) -> list[Regime]:
        decode = [Regime("decode", batch, self.prompt_tokens, self.new_tokens) for batch in self.batches]
        return decode + [Regime("prefill", 1, length, 1) for length in self.prefill]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(regime.prompt + regime.new_tokens for regime in self.regimes)

    @property
    def cache_tokens(self) -> int:
        """Room that all texts of any regime need, with pages that are not full."""
        return max(regime.batch * (regime.prompt + regime.new_tokens + 64) for regime in self.regimes)

    def to_json(self) -> dict[str, Any]:
        """Without the places of this machine's files."""
        data = asdict(self) | {"text": "built in" if self.text is None else "given"}
        del data["peer_pythons"], data["unasked"]
        for name in ("model", "plugin", "random", "static"):
            data[name] = None if data[name] is None else Path(data[name]).name
        return data
