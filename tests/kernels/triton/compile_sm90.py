"""Compile every kernel of the passes for Hopper, without a GPU: python compile_sm90.py ROWS VARIANT

A pass runs over tensors that have shapes and no memory, and each launch is compiled instead. The sizes are those of an
8B model. Prints a line of JSON for each kernel. Run by test_compiles.py in a process without Triton's interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import (
    PAGE,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    LayerTensors,
    Linear,
    ModelTensors,
    Norm,
    Rope,
    RouterTensors,
)
from depthdial.kernels.triton import attention, linear, mlp, norm, prefill_attention, route, rows
from depthdial.kernels.triton.decode_pass import DecodePass

D, F, A, R, V, HEADS, KV_HEADS, HD = 4096, 14336, 896, 256, 128256, 32, 8, 128
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.uint8: "*u8", torch.int64: "*i64"}
META = torch.device("meta")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def compiled(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, Any]:
    """What the compiler says of one launch, as Triton would specialise it."""
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    signature, attributes = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            constants[name], signature[name] = value, "constexpr"
            continue
        signature[name] = (
            TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if isinstance(value, int) else "fp32"
        )
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= {name: "constexpr" for name in constants if name not in signature}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    code = made.asm["ptx"]
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        command = [str(assembler), "-v", "--gpu-name", "sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": kernel.fn.__name__,
        "shared": made.metadata.shared,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.", code)),
        "warpgroup_products": len(re.findall(r"wgmma\.mma_async", code)),
        "products": len(re.findall(r"\bmma\.sync", code)),
    }


class Compiler:
    """Stands where a kernel stood: a launch becomes a compilation, once for each specialisation."""

    def __init__(self, kernel: Any, seen: dict[str, dict[str, Any]]):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*args: Any, **constants: Any) -> None:
            shown = [TYPES[a.dtype] if isinstance(a, Tensor) else a if a is None else type(a).__name__ for a in args]
            key = f"{self.kernel.fn.__name__} {shown} {constants}"
            if key not in self.seen:
                self.seen[key] = compiled(self.kernel, args, constants)
                print(json.dumps(self.seen[key]), flush=True)

        return launch


def model(gemma: bool) -> ModelTensors:
    """One layer that always runs, and one with router and adapter."""
    plain_norm, head_norm = Norm(empty(D), 1e-5, gemma), Norm(empty(HD), 1e-5, gemma)
    shapes = {"q": (HEADS * HD, D), "k": (KV_HEADS * HD, D), "v": (KV_HEADS * HD, D), "o": (D, HEADS * HD)}
    shapes |= {"gate": (F, D), "up": (F, D), "down": (D, F)}
    linears = {
        name: Linear(empty(*shape), empty(shape[0]) if gemma and name in "qkv" else None)
        for name, shape in shapes.items()
    }
    extra: dict[str, Any] = {}
    if gemma:
        extra = {"after_attn": plain_norm, "after_mlp": plain_norm, "q_norm": head_norm, "k_norm": head_norm}
        extra |= {"window": 1024, "activation": "gelu_tanh"}
    layer = LayerTensors(
        before_attn=plain_norm, before_mlp=plain_norm, heads=HEADS, kv_heads=KV_HEADS, head_dim=HD, scale=0.1,
        rope="full", **linears, **extra,
    )  # fmt: skip
    floats = [empty(R, dtype=torch.float32) for _ in range(2)]
    norm, tanh = Norm(floats[0], 1e-5), Act("tanh")
    between = (tanh, norm) if gemma else (norm, tanh)
    router = RouterTensors((Dense(empty(R, D)), *between, Dense(floats[1][None])), soft=not gemma)
    layer = layer._replace(branch=Branch("table"))
    routed = layer._replace(branch=Branch("ops", router), adapter=AdapterTensors(empty(A, D), empty(A, D), empty(D, A)))
    ropes = {"full": Rope(empty(HD // 2, dtype=torch.float32))}
    return ModelTensors(empty(V, D), (layer, routed), plain_norm, empty(V, D), ropes, softcap=30.0 if gemma else None)


def main(tokens: int, variant: str) -> None:
    seen: dict[str, dict[str, Any]] = {}
    for module in (rows, norm, linear, mlp, route, attention, prefill_attention):
        for name, kernel in list(vars(module).items()):
            # launched from the host: the others are compiled into these
            if (
                isinstance(kernel, triton.JITFunction)
                and name.startswith("_")
                and f"{name}[" in Path(str(module.__file__)).read_text()
            ):
                setattr(module, name, Compiler(kernel, seen))
    gemma = variant == "gemma"
    tensors, pages = model(gemma), 64
    k, v = (empty(2 * pages, KV_HEADS, PAGE, HD) for _ in range(2))
    cache = PagedCache(k, v, empty(2, tokens, pages, dtype=torch.int32))
    made = DecodePass(tensors, cache, tokens, given=gemma)
    made.run()
    layer = tensors.layers[0]
    angles = empty(tokens, HD // 2)
    queries = attention.Queries(empty(tokens, HEADS * HD), layer.q_norm, angles, angles, layer.scale, layer.window)
    bounds = empty(2, dtype=torch.int32)
    out = empty(tokens, HEADS * HD)
    prefill_attention.attend_prompt(queries, k, v, made.place, None, bounds, 4096, out)
    mlp.multiply_activated(empty(tokens, F), empty(tokens, F), layer.activation)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
