"""A whole model whose passes of 1 to 64 tokens run in one native call each, without allocating anything.

It refers to the tensors it is given and copies none but the small ones (norms, biases); with int8 weights it holds the
packed ones, and the originals can be dropped by their owner.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.kernels.cpu.abi import ORDERS, LayerSpec, ModelSpec, PassSpec, Pointers, RouterSpec, load
from depthdial.kernels.cpu.build import EMULATED, Log, Unavailable, all_isas, library, supported, to_stderr
from depthdial.kernels.pack import packed
from depthdial.kernels.tensors import MAX_TOKENS, PAGE, Int8, LayerTensors, ModelTensors

_OUT_OF_RANGE = {
    1: "a token id is outside the vocabulary",
    2: "a sequence is not a row of the page table",
    3: "a position is beyond the pages of its sequence; give it more columns of the page table",
    4: "the page table names a page that the cache does not have",
    5: "a token that is asked for is not in the pass",
}


class Counters(NamedTuple):
    """What one pass did, counted where it was done."""

    rows_run: int
    """Tokens that ran a layer, summed over layers."""
    layers_run: int
    """Layers that at least one token ran."""
    weight_bytes: int
    """Of matrices: each is counted once however many tokens share it, none where no token needs it."""
    kv_bytes: int
    """K and V that attention read."""
    padded_rows: int = 0
    """Rows computed for nothing, where they come by sixteen."""


class NativeModel:
    """`forward` is `kernels.reference.forward_pass`. isa: an instruction set of `build.ISAS`, None the best there is.

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
        self.depth, self.max_tokens = len(model.layers), max_tokens
        self.int8 = any(isinstance(layer.down.weight, Int8) for layer in model.layers)
        self.vocabulary = (model.head.values if isinstance(model.head, Int8) else model.head).shape[0]
        self._heads = {(layer.kv_heads, layer.head_dim) for layer in model.layers}
        if len(self._heads) != 1:
            raise ValueError("native kernels need the same K/V heads in every layer; run this model in torch")
        self._kv_shape = self._heads.pop()
        self.isa, self._library = _loaded(isa, log)
        self._pointers = Pointers()
        self._spec = _spec(model, self._pointers, self.dtype, max_tokens)
        self._pass, self._all = PassSpec(), torch.arange(max_tokens, dtype=torch.int32)
        self._threads = self._process = 0
        self._handle: int | None = None

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        sequences: Tensor,
        page_table: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        offsets: Tensor,
        given: Tensor | None,
        logits_out: Tensor | None,
        keep_out: Tensor,
        score_out: Tensor,
        argmax_out: Tensor | None = None,
        asked: Tensor | None = None,
        reading: bool = False,
    ) -> Counters:
        """Runs N tokens; writes K and V of all of them into the caches and its results into the tensors `*_out`.

        ids: int64 [N]; positions, sequences: int32 [N]; page_table: int32 [sequences, pages of one]; caches:
        T [L, pages, kv_heads, PAGE, hd]; offsets: fp32 [N], +inf for the untouched base; given: uint8 [L, N], the
        decision at layers without a router. asked: int32 [M], tokens whose logits are wanted; None: all, in order.
        logits_out: fp32 [M, V]; argmax_out: int64 [M], -1 where logits are not finite; without either the head is not
        run. keep_out: uint8 [L, N]; score_out: fp32 [L, N]. reading: under int8 weights activations stay as they are,
        which is more exact, and faster for many tokens. A token comes out as in a pass of its own, bit for bit.
        Raises ValueError for anything of another shape, dtype or range.
        """
        n, call = ids.shape[0], self._pass
        if not 1 <= n <= self.max_tokens:
            raise ValueError(f"a native pass has 1 to {self.max_tokens} tokens, not {n}; run more in several")
        self._fill(call, ids, positions, sequences, page_table, k_cache, v_cache, offsets, given, keep_out, score_out)
        asked = self._all[:n] if asked is None else asked
        count = len(asked)
        wanted = (count, self.vocabulary)
        call.asked, call.asked_count = _checked("asked", asked, torch.int32, (count,)), count
        call.logits = None if logits_out is None else _checked("logits_out", logits_out, torch.float32, wanted)
        call.argmax = None if argmax_out is None else _checked("argmax_out", argmax_out, torch.int64, (count,))
        call.reading = reading
        code = self._library.depthdial_pass(self._team(), call)
        if code:
            raise ValueError(_OUT_OF_RANGE[code])
        return Counters(call.rows_run, call.layers_run, call.weight_bytes, call.kv_bytes)

    @property
    def prefills(self) -> bool:
        """Does `prefill` run this model here? It needs AMX, bf16, and sizes that are whole tiles."""
        return bool(self._library.depthdial_prefills(self._team()))

    def prefill(
        self,
        ids: Tensor,
        positions: Tensor,
        sequences: Tensor,
        page_table: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        offsets: Tensor,
        given: Tensor | None,
        asked: Tensor,
        logits_out: Tensor,
        keep_out: Tensor,
        score_out: Tensor,
    ) -> Counters:
        """`forward` for any number of tokens, those of a sequence side by side and in order. Only where `prefills`.

        asked: int32 [M], tokens whose logits are wanted; logits_out: fp32 [M, V]. A token comes out the same, bit for
        bit, whatever other tokens are in the pass; other bits than by `forward`, which sums in another order.
        """
        assert self.prefills, "this model or machine is not for `prefill`"
        call, count = PassSpec(), asked.numel()
        self._fill(call, ids, positions, sequences, page_table, k_cache, v_cache, offsets, given, keep_out, score_out)
        call.asked, call.asked_count = _checked("asked", asked, torch.int32, (count,)), count
        call.logits = _checked("logits_out", logits_out, torch.float32, (count, self.vocabulary))
        code = self._library.depthdial_prefill(self._team(), call)
        if code < 0:
            raise MemoryError("no memory for a native prefill")
        if code:
            raise ValueError(_OUT_OF_RANGE[code])
        return Counters(call.rows_run, call.layers_run, call.weight_bytes, call.kv_bytes, call.padded_rows)

    def _fill(
        self,
        call: PassSpec,
        ids: Tensor,
        positions: Tensor,
        sequences: Tensor,
        page_table: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        offsets: Tensor,
        given: Tensor | None,
        keep_out: Tensor,
        score_out: Tensor,
    ) -> None:
        """What both kinds of passes are given, checked."""
        n, depth, pages = ids.shape[0], self.depth, k_cache.shape[1]
        shape = (depth, pages, self._kv_shape[0], PAGE, self._kv_shape[1])
        call.ids = _checked("ids", ids, torch.int64, (n,))
        call.positions = _checked("positions", positions, torch.int32, (n,))
        call.sequences = _checked("sequences", sequences, torch.int32, (n,))
        call.page_table = _checked("page_table", page_table, torch.int32, page_table.shape)
        call.k_cache = _checked("k_cache", k_cache, self.dtype, shape)
        call.v_cache = _checked("v_cache", v_cache, self.dtype, shape)
        call.offsets = _checked("offsets", offsets, torch.float32, (n,))
        call.given = given if given is None else _checked("given", given, torch.uint8, (depth, n))
        call.keep = _checked("keep_out", keep_out, torch.uint8, (depth, n))
        call.score = _checked("score_out", score_out, torch.float32, (depth, n))
        call.tokens, call.pages = n, pages
        call.table_rows, call.table_columns = page_table.shape
        call.table_stride, call.layer_stride = page_table.shape[1], k_cache.stride(0)

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


def _spec(model: ModelTensors, to: Pointers, dtype: torch.dtype, max_tokens: int) -> ModelSpec:
    ropes = list(model.ropes)
    layers = (LayerSpec * len(model.layers))(*(_layer_spec(layer, ropes, to) for layer in model.layers))
    frequencies = torch.stack([model.ropes[name].inv_freq.float().cpu() for name in ropes])
    scaling = torch.tensor([model.ropes[name].scaling for name in ropes], dtype=torch.float32)
    return ModelSpec(
        *(layers, to.mat(model.embed), to.mat(model.head), to.norm(model.norm)),
        *(to.address(frequencies), to.address(scaling)),
        *(len(layers), model.norm.weight.shape[0], len(ropes), dtype == torch.bfloat16, max_tokens),
        *(model.embed_scale, model.softcap or 0.0),
    )


def _layer_spec(layer: LayerTensors, ropes: list[str], to: Pointers) -> LayerSpec:
    if layer.heads % layer.kv_heads or layer.heads // layer.kv_heads > 64:
        raise ValueError(f"{layer.heads} heads cannot share {layer.kv_heads} K/V heads in native kernels")
    spec = LayerSpec()
    for name in ("before_attn", "before_mlp", "after_attn", "after_mlp", "q_norm", "k_norm"):
        setattr(spec, name, to.norm(getattr(layer, name)))
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        setattr(spec, name, to.linear(getattr(layer, name)))
    if layer.adapter is not None:
        spec.adapter_gate, spec.adapter_up, spec.adapter_down = (to.mat(weight) for weight in layer.adapter)
    if layer.router is not None:
        router = layer.router
        spec.router = RouterSpec(
            *(
                to.mat(router.enc),
                to.address(router.scale.detach().float()),
                to.address(router.folded.detach().float()),
            ),
            *(router.eps, router.bias, router.cut, ORDERS.index(router.order), router.soft),
        )
    spec.heads, spec.kv_heads, spec.head_dim = layer.heads, layer.kv_heads, layer.head_dim
    spec.rope, spec.gelu = ropes.index(layer.rope), layer.activation == "gelu_tanh"
    spec.window, spec.scale, spec.sparse_kv = layer.window or 0, layer.scale, layer.sparse_kv
    return spec
