"""A whole model whose passes of 1 to 64 tokens run in one native call each, without allocating anything.

It refers to the tensors it is given and copies none but the small ones (norms, biases); with int8 weights it holds the
packed ones, and the originals can be dropped by their owner.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.kernels.cpu.abi import PassSpec, Pointers, load
from depthdial.kernels.cpu.build import EMULATED, Log, Unavailable, all_isas, library, supported, to_stderr
from depthdial.kernels.cpu.spec import model_spec, padded
from depthdial.kernels.pack import packed
from depthdial.kernels.passing import Decide, Decided, PagedCache, PassOutput, PassTokens, Waiting
from depthdial.kernels.tensors import END, MAX_TOKENS, PAGE, ModelTensors, rows_of

_OUT_OF_RANGE = {
    1: "a token id is outside the vocabulary",
    2: "a sequence is not a row of the page table",
    3: "a position is beyond the pages of its sequence; give it more columns of the page table",
    4: "the page table names a page that the cache does not have",
    5: "a token that is asked for is not in the pass",
}
_NO_MEMORY = -6


class Counters(NamedTuple):
    """What one pass did, counted where it was done."""

    rows_run: int
    """Tokens that ran a visit or a part of it, summed over visits."""
    layers_run: int
    """Visits of which at least one token ran a part."""
    weight_bytes: int
    """Of matrices: each is counted once however many tokens share it, none where no token needs it."""
    kv_bytes: int
    """K and V that attention read."""
    padded_rows: int = 0
    """Rows computed for nothing, where they come by sixteen."""
    looks: int = 0
    """Tokens that looked at the head's opinion, summed over steps."""


class NativeModel:
    """`forward` is what the torch runner makes of the same tokens. isa: one of `build.ISAS`, None the best there is.

    weights: None takes the model's as they are, "int8" quantises those that are not yet. One pass runs at a time.
    Raises ValueError for a model that cannot run here, build.Unavailable where no library can be built.
    """

    def __init__(
        self,
        model: ModelTensors,
        weights: str | None = None,
        isa: str | None = None,
        max_tokens: int = MAX_TOKENS,
        log: Log = to_stderr,
    ):
        if weights not in (None, "bf16", "fp32", "int8"):
            raise ValueError(f"weights must be 'bf16', 'fp32' or 'int8', not {weights!r}")
        if not 1 <= max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens must lie between 1 and {MAX_TOKENS}, not {max_tokens}")
        self.dtype = model.norm.weight.dtype
        if self.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"native kernels run bfloat16 and float32 models, not {self.dtype}; load it as one of them"
            )
        if weights in ("bf16", "fp32") and self.dtype != {"bf16": torch.bfloat16, "fp32": torch.float32}[weights]:
            raise ValueError(
                f"the model is in {self.dtype}, not {weights}; load it in the dtype its weights should have"
            )
        if weights == "int8":
            model = packed(model)
        self.depth, self.steps, self.caches = len(model.layers), len(model.steps), model.caches
        self.max_tokens, self._width = max_tokens, model.norm.weight.shape[0]
        self._opens = any(step.branch.by == "open" for step in model.steps)
        matrices = (part for layer in model.layers for part in (layer.q, layer.k, layer.o, layer.gate, layer.down))
        self.narrow = any(
            not isinstance(weight, Tensor) for weight in (model.head, *(part.weight for part in matrices))
        )
        """Are there weights that are multiplied by activations in int8, but for those that are read?"""
        self.vocabulary = rows_of(model.head)
        self._heads = {(layer.kv_heads, layer.head_dim) for layer in model.layers}
        if len(self._heads) != 1:
            raise ValueError("native kernels need the same K/V heads in every layer; run this model in torch")
        self.kv_shape, self._ropes = self._heads.pop(), len(model.ropes)
        self.isa, self._library = _loaded(isa, log)
        self._pointers = Pointers()
        self._spec = model_spec(model, self._pointers, max_tokens)
        self._pass, self._all = PassSpec(), torch.arange(max_tokens, dtype=torch.int32)
        self._threads = self._process = 0
        self._handle: int | None = None

    def forward(
        self,
        tokens: PassTokens,
        cache: PagedCache,
        out: PassOutput,
        asked: Tensor | None = None,
        reading: bool = False,
        decide: Decide | None = None,
    ) -> Counters:
        """Runs N tokens; writes their K and V into the cache, and its results into `out`.

        asked: int32 [M], tokens whose logits are wanted; None: all, in order. reading: where weights are narrow
        activations stay as they are, which is more exact. decide: of "open" steps. A token comes out as in a pass of
        its own, bit for bit. Raises ValueError for anything of another shape, dtype or range.
        """
        n, call = tokens.ids.shape[0], self._pass
        if not 1 <= n <= self.max_tokens:
            raise ValueError(f"a native pass has 1 to {self.max_tokens} tokens, not {n}; run more in several")
        self._fill(call, tokens, cache, out, self._all[:n] if asked is None else asked)
        call.argmax = None if out.argmax is None else _checked("argmax", out.argmax, torch.int64, (call.asked_count,))
        call.reading = reading
        return self._run(self._library.depthdial_steps, call, tokens, out, decide)

    @property
    def prefills(self) -> bool:
        """Does `prefill` run this model here? It needs AMX, bf16, and sizes that are whole tiles."""
        return bool(self._library.depthdial_prefills(self._team()))

    def prefill(
        self, tokens: PassTokens, cache: PagedCache, out: PassOutput, asked: Tensor, decide: Decide | None = None
    ) -> Counters:
        """`forward` for any number of tokens, those of a sequence side by side and in order. Only where `prefills`.

        It writes logits, no argmax. A token comes out the same, bit for bit, whatever other tokens are in the
        pass; other bits than by `forward`, which sums in another order.
        """
        assert self.prefills, "this model or machine is not for `prefill`"
        call = PassSpec()
        self._fill(call, tokens, cache, out, asked)
        return self._run(self._library.depthdial_prefill, call, tokens, out, decide)

    def _fill(self, call: PassSpec, tokens: PassTokens, cache: PagedCache, out: PassOutput, asked: Tensor) -> None:
        """What both kinds of passes are given, checked."""
        n, pages, count = tokens.ids.shape[0], cache.k.shape[0], len(asked)
        shape = (pages, self.kv_shape[0], PAGE, self.kv_shape[1])
        table = cache.table
        call.ids = _checked("ids", tokens.ids, torch.int64, (n,))
        call.positions = _checked("positions", tokens.positions, torch.int32, (n,))
        call.sequences = _checked("sequences", tokens.sequences, torch.int32, (n,))
        call.page_table = _checked("table", table, torch.int32, (self.caches, *table.shape[1:]))
        call.k_cache = _checked("k", cache.k, self.dtype, shape)
        call.v_cache = _checked("v", cache.v, self.dtype, shape)
        call.held = None if cache.held is None else _checked("held", cache.held, torch.uint8, (pages, PAGE))
        call.offsets = _checked("offsets", tokens.offsets, torch.float32, (n,))
        given = tokens.given
        call.given = None if given is None else _checked("given", given, torch.uint8, (self.steps, n))
        call.inv_freq = call.query_scale = None
        if tokens.inv_freq is not None:
            self._frequencies = padded(tokens.inv_freq, self.kv_shape[1] // 2)  # held until the pass has run
            shape = (n, self._ropes, self.kv_shape[1] // 2)
            call.inv_freq = _checked("inv_freq", self._frequencies, torch.float32, shape)
        if tokens.query_scale is not None:
            call.query_scale = _checked("query_scale", tokens.query_scale, torch.float32, (n,))
        call.keep = _checked("keep", out.keep, torch.uint8, (self.steps, n))
        call.score = _checked("score", out.score, torch.float32, (self.steps, n))
        call.asked, call.asked_count = _checked("asked", asked, torch.int32, (count,)), count
        logits = out.logits
        call.logits = None if logits is None else _checked("logits", logits, torch.float32, (count, self.vocabulary))
        call.tokens, call.pages = n, pages
        _, call.table_rows, call.table_columns = table.shape
        call.table_stride, call.cache_stride = table.stride(1), table.stride(0)
        call.resumed = False

    def _run(self, steps: Any, call: PassSpec, tokens: PassTokens, out: PassOutput, decide: Decide | None) -> Counters:
        """steps: `depthdial_steps` or `depthdial_prefill`."""
        if not self._opens:
            self._check(steps(self._team(), call, 0, END))
            return _counted(call)
        if decide is None:
            raise ValueError("this model has steps that the caller decides; give `decide`")
        # in numpy, where there is so little to do: a step that waits costs as much as a layer soon
        n, keep, team = call.tokens, out.keep.numpy(), self._team()
        x, z = torch.empty(2, n, self._width).unbind()
        at, free = np.zeros(n, dtype=np.int32), tokens.offsets.numpy() != np.inf
        call.x, call.z, call.at = x.data_ptr(), z.data_ptr(), at.ctypes.data
        stood, alone = 0, torch.ones(1, dtype=torch.bool) if n == 1 else None  # who is alone waits, or it went on
        while (stood := self._check(steps(team, call, stood, END))) != END:
            here = torch.from_numpy((at == stood) & free) if alone is None else alone
            keep[stood], *weights = self._decided(decide(Waiting(stood, here, x, z)))
            call.run, call.skip = (None if weight is None else weight.ctypes.data for weight in weights)
            call.resumed = True
        return _counted(call)

    @staticmethod
    def _decided(decided: Decided) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        run, skip = (None if each is None else np.ascontiguousarray(each.numpy(), np.float32) for each in decided[1:])
        return decided.keep.numpy(), run, skip

    @staticmethod
    def _check(stood: int) -> int:
        if stood == _NO_MEMORY:
            raise MemoryError("no memory for a native prefill")
        if stood < 0:
            raise ValueError(_OUT_OF_RANGE[-stood])
        return stood

    def read(self, tensor: Tensor) -> int:
        """Reads a tensor with the threads of a pass, a benchmark's limit of bandwidth, and returns its bytes."""
        size = tensor.numel() * tensor.element_size()
        self._library.depthdial_read(self._team(), tensor.data_ptr(), size)
        return size

    def _team(self) -> int:
        """The native model with as many threads as torch has now; made anew in a fork's child, which has none."""
        threads, process, handle = torch.get_num_threads(), os.getpid(), self._handle
        if handle is None or threads != self._threads or process != self._process:
            if handle is not None and process == self._process:
                self._release()
            handle = self._library.depthdial_new(ctypes.byref(self._spec), threads)
            if not handle:
                raise MemoryError(f"no memory or no threads for native kernels on {threads} threads")
            self._handle, self._threads, self._process = handle, threads, process
            self._release = weakref.finalize(self, _free, self._library, handle, process)
        return handle


def _counted(call: PassSpec) -> Counters:
    return Counters(call.rows_run, call.layers_run, call.weight_bytes, call.kv_bytes, call.padded_rows, call.looks)


def _free(found: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:  # a fork's child has no threads to join
        found.depthdial_free(handle)


def _loaded(isa: str | None, log: Log) -> tuple[str, ctypes.CDLL]:
    known = supported()
    if isa == EMULATED and EMULATED in all_isas():
        known = (EMULATED,)
    if isa is not None and isa not in known:
        raise ValueError(f"this processor does not run {isa!r} kernels; it runs {', '.join(known)}")
    for name in known if isa is None else (isa,):
        try:
            found = load(str(library(name, log)))
        except Unavailable as error:  # an old compiler may not know the newest instructions
            if name == known[-1] or name == isa:
                raise
            log(str(error))
            continue
        if found.depthdial_ready():
            return name, found
    raise Unavailable(
        f"the system does not grant this process {isa} instructions; choose another of {', '.join(known)}"
    )


def _checked(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous() or tensor.is_cuda:
        raise ValueError(
            f"{name} must be a contiguous {dtype} of shape {tuple(shape)} on the CPU, "
            f"not {tensor.dtype} of {tuple(tensor.shape)}"
        )
    return tensor.data_ptr()
