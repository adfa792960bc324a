"""The settings of one pre-training run; a text in an annotation makes an option of `depthdial pretrain`.

Fields of the method itself live in the method. Nothing heavy is imported: `--help` reads this.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from depthdial.core.method import Method

Gather = Literal["auto", "on", "off"]
DENSITY_FIELDS = ("density", "capacity", "rate")
"""What methods call the share of tokens that run a layer."""


@dataclass(frozen=True)
class PretrainConfig:
    """A run: the model's size, the method, the data, and how long. Saved as pretrain.json beside the model."""

    data: tuple[str, ...]
    output: str
    size: str = ""
    """LAYERSxHEADS@WIDTH and more, see `models.scratch.Spec`."""
    start: str | None = None
    """A folder of one of our own types (`depthdial retrofit`) to go on from, with its method, in place of `size`."""
    method: str = "skiplayer"
    density: Annotated[float | None, "Share of tokens that run each routed layer; the method's own by default."] = None
    fields: dict[str, Any] = field(default_factory=dict)
    """The method's hyper-parameters, by field name."""
    tokenizer: Annotated[str, "A name or folder, or train:SIZE; by default that of --shards, or train:4096."] = ""
    shards: Annotated[str | None, "Folder of the tokenised data, to share between runs; default OUTPUT/shards."] = None
    strict: Annotated[bool, "Stop at a row of the data that fits no shape, instead of leaving it out."] = False
    steps: Annotated[int, ""] = 1000
    batch: Annotated[int, "Rows per micro-batch, over all processes."] = 32
    accumulate: Annotated[int, "Micro-batches per optimizer step."] = 1
    length: Annotated[int, "Tokens per row."] = 256
    optimizer: Annotated[Literal["adamw", "adafactor"], "adamw or adafactor (the SkipLayer paper's)."] = "adamw"
    lr: Annotated[float, "For adafactor about ten times as high: it is relative to the size of each weight there."] = (
        1e-3
    )
    router_lr: Annotated[float, "Of routers and predictors, relative to --lr."] = 1.0
    warmup: Annotated[float, "Share of steps."] = 0.05
    weight_decay: Annotated[float, ""] = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: Annotated[float, "Largest norm of a step's gradient."] = 1.0
    seed: Annotated[int, ""] = 0
    """Of the first weights, the order of rows and the routers' noise. What is held out is the same for every seed."""
    save_every: Annotated[int, "Steps between checkpoints."] = 500
    eval_every: Annotated[int, "Steps between measurements of held-out text."] = 250
    heldout: Annotated[float, "Share of documents held out."] = 0.01
    heldout_tokens: Annotated[int, "Held-out tokens measured at most, always the same ones."] = 65536
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        "bfloat16 (autocast over fp32 weights), float32, or auto: by the device.",
    ] = "auto"
    device: Annotated[str, "auto or cpu."] = "auto"
    gather: Annotated[Gather, "Compute layers for the tokens that run them only: on, off, or auto (measured)."] = "auto"
    compile: Annotated[bool, "Compile what is free of routing: worth it for long runs."] = False
    """About 1.6 times the speed, after some minutes."""
    fsdp: Annotated[
        bool, "Under torchrun: shard weights, gradients and the optimizer's state (FSDP2), not copy them (DDP)."
    ] = False

    def __post_init__(self):
        if not self.data:
            raise ValueError("no data files given; name a file, a folder of files, or a data set")
        for name in ("steps", "batch", "accumulate", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.start is not None and (self.size or self.tokenizer or self.density is not None):
            raise ValueError("a model to --start from has its own size, tokenizer and method: leave theirs out")
        if self.length < 2:
            raise ValueError(f"row length is {self.length}; give at least 2 tokens")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density {self.density} is out of range; it is a share of tokens: 0 < density <= 1")
        if not (self.lr > 0 and self.clip > 0 and self.router_lr > 0):
            raise ValueError("the learning rates and --clip must be positive")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup {self.warmup} is out of range; it is a share of the steps: 0 <= warmup <= 1")
        if self.compile and self.fsdp:
            raise ValueError("--compile works on whole layers and --fsdp cuts them up; leave one of the two out")
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout {self.heldout} is out of range; it is a share of documents: 0 <= heldout < 1")
        for name, choices in {
            "optimizer": ("adamw", "adafactor"),
            "device": ("auto", "cpu", "cuda"),
            "dtype": ("auto", "float32", "bfloat16"),
            "gather": ("auto", "on", "off"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")

    def chosen_method(self) -> Method:
        """The method with its fields and density; it starts at the first layer, where it leaves that open, and without
        adapters where no router says who needs them: those are for models that were trained to run every layer.

        Raises ValueError for unknown names, a method without density, one that is made for trained models, or one that
        the model to start from does not have.
        """
        from depthdial.methods import METHODS, method_named

        if self.start is not None:
            return self._method_of(self.start)
        if self.method not in METHODS:
            return method_named(self.method, {})
        kind = METHODS[self.method]
        names, fields = {f.name for f in dataclasses.fields(kind)}, dict(self.fields)  # pyright: ignore[reportArgumentType]
        if self.density is not None:
            name = next((name for name in DENSITY_FIELDS if name in names), None)
            if name is None and self.density < 1:
                raise ValueError(f"method {self.method!r} runs every layer: it has no density; leave --density out")
            if name is not None and fields.setdefault(name, self.density) != self.density:
                raise ValueError(f"density is given twice: {self.density} and {name}={fields[name]}; leave one out")
        if "first" in names:
            fields.setdefault("first", 0)
        if "adapter_ratio" in names and not kind.reads & {"x", "logits"}:
            fields.setdefault("adapter_ratio", 0)
        method = method_named(self.method, fields)
        if method.frozen and method.target is None:
            raise ValueError(f"method {self.method!r} adapts a trained model; use depthdial train for it, or, to train "
                             "fewer layers, lower --size")  # fmt: skip
        return method

    def _method_of(self, start: str) -> Method:
        """That of the model to start from."""
        from depthdial.models.ahead import config_ahead
        from depthdial.models.families import OWN
        from depthdial.models.own import method_for

        config: Any = config_ahead(start)
        if config is None or not config.model_type.startswith(OWN):
            raise ValueError(
                f"{start} has no method of its own; `depthdial retrofit` makes a recursive model of a base"
            )
        if self.length > config.max_position_embeddings:
            raise ValueError(f"rows of {self.length} tokens are longer than the context of {start}, "
                             f"{config.max_position_embeddings}; give a lower --length")  # fmt: skip
        return method_for(config, self.method, self.fields)

    @property
    def rows_a_step(self) -> int:
        return self.batch * self.accumulate
