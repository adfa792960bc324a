"""The settings of one training run; a text in an annotation makes an option of `depthdial train` (`cli.options`).

Fields of the method itself live in the method. Nothing heavy is imported: `--help` reads this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from depthdial.core.dial import PromptBudget, prompt_budget

Objective = Literal["lm", "distill"]


@dataclass(frozen=True)
class TrainConfig:
    """A run: the model, the method, the data, and how long. Saved as train.json beside the plug-in."""

    model: str
    data: tuple[str, ...]
    output: str
    method: Annotated[str, "One of `depthdial methods`."] = "flexidepth"
    fields: dict[str, Any] = field(default_factory=dict)
    """The method's hyper-parameters, by field name."""
    budget: float | None = 0.75
    """True cost at which the plug-in is meant to be used; None trains with the method's own loss (alpha)."""
    lowest: Annotated[float | None, "Lowest budget the plug-in is trained for: each row at one from here ..."] = None
    """None: 0.05 below `budget`, or the floor."""
    highest: Annotated[float, "... to here, so that one plug-in serves all of them."] = 0.98
    prompt_budget: PromptBudget = 1.0
    """1.0: prompts are read by the untouched base, and what is written is routed, priced and counted. "same": every
    token is, the papers' form."""
    same_share: Annotated[float, "Share of rows in the papers' form all the same, so that one plug-in serves both."] = (
        0.3
    )
    on_policy: Annotated[
        float, "Share of the other rows that are answers which the model in training wrote itself."
    ] = 0.0
    refresh: Annotated[int, "Steps after which the model writes new text, with --on-policy."] = 200
    objective: Annotated[
        Objective, "distill: KL to the same model at full depth. lm: cross-entropy, as in the paper."
    ] = "distill"
    divergence: Annotated[str, "From the base, for distill: forward or reverse (KL), or js (Jensen-Shannon)."] = (
        "forward"
    )
    shortlist: Annotated[
        int, "Likeliest tokens of the teacher at each place that students are compared at; 0: the whole vocabulary."
    ] = 64
    """What is left of the vocabulary is one bucket."""
    copies: Annotated[int, "Budgets that a row is written at, for one reading by the base."] = 4
    strict: Annotated[bool, "Stop at a row of the data that fits no shape, instead of leaving it out."] = False
    drop_sources: tuple[str, ...] = ()
    """Glob patterns of `source` values to leave out (by licence, say)."""
    steps: Annotated[int, ""] = 1000
    fit_steps: Annotated[int, "Steps of fitting adapters layer by layer first, on the same kind of rows."] = 150
    batch: Annotated[int, "Rows per micro-batch."] = 8
    accumulate: Annotated[int, "Micro-batches per optimizer step."] = 1
    length: Annotated[int, "Tokens per packed row."] = 256
    lr: Annotated[float, ""] = 1e-3
    fit_lr: float = 4e-3
    router_lr: float = 0.2
    """Factor on the routers' learning rate."""
    warmup: float = 0.03
    """Share of steps."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: Annotated[int, ""] = 0
    save_every: Annotated[int, "Steps between checkpoints."] = 200
    heldout_tokens: Annotated[int, "Tokens held out of the data, on which the dial's curve is measured."] = 16384
    generated_tokens: Annotated[
        int, "Tokens generated per point of the curve for generated text; 0: no such curve."
    ] = 2048
    dtype: Annotated[str, "Of the base: bfloat16 or float32."] = "bfloat16"
    """Not float16: gradients of single tokens are below its range."""
    device: Annotated[str, ""] = "auto"
    compile: Annotated[bool, "Compile the frozen pieces: worth it for long runs."] = False
    """A minute at the start, then half as fast again on a CPU."""
    start_from: Annotated[str | None, "A plug-in that has this method's parts, to start from instead of the fit."] = (
        None
    )
    """What else it has stays there."""

    def __post_init__(self):
        from depthdial.models.loss import DIVERGENCES

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
