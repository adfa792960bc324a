"""Everything that one training run is told. Fields of the method itself live in the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from depthdial.core.dial import PromptBudget, prompt_budget
from depthdial.models.loss import DIVERGENCES
from depthdial.train.lesson import Objective


@dataclass(frozen=True)
class TrainConfig:
    """A run: the model, the method, the data, and how long. Saved as train.json beside the plug-in."""

    model: str
    data: tuple[str, ...]
    output: str
    method: str = "flexidepth"
    fields: dict[str, Any] = field(default_factory=dict)
    """The method's hyper-parameters, by field name."""
    budget: float | None = 0.75
    """True cost at which the plug-in is meant to be used; None trains with the method's own loss (alpha)."""
    lowest: float | None = None
    """Rows are trained at budgets from here ..."""
    highest: float = 0.98
    """... to here, so that one plug-in serves all of them. lowest None: 0.05 below `budget`, or the floor."""
    prompt_budget: PromptBudget = 1.0
    """1.0: prompts are read by the untouched base, and what is written is routed, priced and counted. "same": every
    token is, the papers' form."""
    same_share: float = 0.3
    """With prompts read in full: the share of rows in the papers' form all the same, so that a plug-in serves both."""
    on_policy: float = 0.0
    """The share of rows, of those read in full, that are answers which the model in training wrote itself."""
    refresh: int = 200
    """Steps between two pools of its own text."""
    objective: Objective = "distill"
    divergence: str = "forward"
    """From the untouched base, for "distill": forward or reverse KL, or Jensen-Shannon ("js")."""
    shortlist: int = 64
    """The likeliest tokens of the teacher at each place, with which and one bucket for the rest students are compared;
    0: with the whole vocabulary."""
    copies: int = 4
    """How often a row is written, each time at another budget, for one reading by the base."""
    strict: bool = False
    """Stop at a row of the data that fits no shape, instead of leaving it out."""
    drop_sources: tuple[str, ...] = ()
    """Glob patterns of `source` values to leave out (by licence, say)."""
    steps: int = 1000
    fit_steps: int = 150
    """Steps of layer-by-layer fitting before training, on the same kind of rows."""
    batch: int = 8
    """Rows per micro-batch."""
    accumulate: int = 1
    length: int = 256
    """Tokens per packed row."""
    lr: float = 1e-3
    fit_lr: float = 4e-3
    router_lr: float = 0.2
    """Factor on the routers' learning rate."""
    warmup: float = 0.03
    """Share of steps."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    save_every: int = 200
    """Steps between checkpoints."""
    heldout_tokens: int = 16384
    """Tokens held out of the data for the curve of the dial."""
    generated_tokens: int = 2048
    """Tokens generated per point of the curve for generated text; 0 leaves that curve out."""
    dtype: str = "bfloat16"
    """Of the base. Not float16: gradients of single tokens are below its range."""
    device: str = "auto"
    compile: bool = False
    """Compile the frozen pieces: a minute at the start, then half as fast again on a CPU."""
    start_from: str | None = None
    """A plug-in that has this method's parts, to start from instead of the fit; what else it has stays there."""

    def __post_init__(self):
        if not self.data:
            raise ValueError("no data files given; name a file, a folder of files, or a data set")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f"budget {self.budget} is out of range; it is a share of the dense cost: 0 < budget <= 1")
        if self.dtype == "float16":
            raise ValueError("training runs in bfloat16 or float32, not float16; the plug-in then serves float16, too")
        if self.objective not in ("lm", "distill"):
            raise ValueError(f"objective must be 'lm' or 'distill', not {self.objective!r}")
        if prompt_budget(self.prompt_budget) not in (1.0, "same"):
            raise ValueError(
                "training reads prompts in full (prompt_budget 1.0) or at the budget of what is written (same), not at "
                f"{self.prompt_budget}"
            )
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, not {self.divergence!r}")
        for name in ("same_share", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of rows, 0 to 1, not {getattr(self, name)}")
        if self.on_policy and (self.prompt_budget == "same" or self.same_share == 1):
            raise ValueError("own text is written after prompts read in full; on_policy needs prompt_budget 1.0")
        if self.on_policy and (self.budget is None or self.objective == "lm"):
            raise ValueError("own text is written at budgets and taught by the base; on_policy needs both")
        if self.shortlist < 0:
            raise ValueError(f"shortlist must be at least 0 (the whole vocabulary), not {self.shortlist}")
        for name in ("steps", "batch", "accumulate", "length", "save_every", "copies", "refresh"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr <= 0 or self.fit_lr <= 0:
            raise ValueError("learning rates must be positive")
