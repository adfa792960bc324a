"""The peer llama.cpp, through the library that llama-cpp-python (0.3.36) builds, at bf16, Q8_0 and Q4_1.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf numpy
    depthdial bench --peers llama-cpp --peer-python llama-cpp=THAT_PYTHON

Built from source on the machine it runs on, so that it has the instructions of its processor, as ours has. Where its
AMX kernels crash on quantised weights (seen with GCC 12), add -DCMAKE_C_FLAGS and -DCMAKE_CXX_FLAGS of
"-mno-amx-int8 -mno-amx-tile -mno-amx-bf16"; bf16 uses none of them. The model is
written as GGUF in bf16 beside the folder it comes from (without a tokenizer: it is given ids), and quantised by
llama.cpp's own tool. Greedy, flash attention as llama.cpp decides, a KV cache of exactly the size that is needed; the
context is made before the clock starts.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as lib
import numpy as np
from driver import Answer, Run, arguments, serve
from llama_cpp import __version__

TYPES = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_1": lib.LLAMA_FTYPE_MOSTLY_Q4_1}
KINDS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder's safetensors; bf16 ones as uint16 (numpy has no such type)."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        size = int(raw[:8].view(np.uint64)[0])
        for name, told in json.loads(bytes(raw[8 : 8 + size])).items():
            if name != "__metadata__":
                first, end = told["data_offsets"]
                flat = raw[8 + size + first : 8 + size + end].view(KINDS[told["dtype"]])
                found[name] = flat.reshape(told["shape"])
    return found


def write(folder: Path, path: Path) -> None:
    """The model as GGUF in bf16; norms in fp32, as llama.cpp's own converter has them."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in ("llama", "mistral"):
        raise ValueError(f"only models of the Llama architecture are converted here, not {config['model_type']}")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], "rope_type": "default"}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope type {rope['rope_type']!r} is not converted here")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("depthdial bench")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors(folder).items():
        if tensor.dtype != np.uint16:
            raise ValueError(f"the weights must be in bf16, and {name} is not")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _interleaved(tensor, heads if "q_proj" in name else kv_heads)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        if tensor.ndim == 1:
            writer.add_tensor(known, (tensor.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(tensor).view(np.uint8)
            writer.add_tensor(known, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    part = path.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's rope, which turns neighbours where Hugging Face turns the halves of a head."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def quantise(source: Path, path: Path, precision: str, threads: int) -> None:
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[precision], threads
    if lib.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        raise ValueError(f"llama.cpp could not quantise the model to {precision}")


class Model:
    """A model in llama.cpp, and a context for the number and length of texts that it was last asked for."""

    def __init__(self, path: Path, threads: int):
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp could not load {path.name}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.threads, self.shape, self.context = threads, (0, 0), None

    def run(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        total = sum(map(len, prompts))
        self._prepare(len(prompts), max(map(len, prompts)) + new_tokens, total)
        batch = lib.llama_batch_init(max(total, len(prompts)), 0, 1)
        try:
            begun = time.perf_counter()
            places = [(token, at, text, at == len(ids) - 1) for text, ids in enumerate(prompts)
                      for at, token in enumerate(ids)]  # fmt: skip
            tokens = [[token] for token in self._pass(batch, places)]
            first = time.perf_counter()
            for step in range(new_tokens - 1):
                places = [
                    (row[-1], len(p) + step, i, True) for i, (row, p) in enumerate(zip(tokens, prompts, strict=True))
                ]
                for row, token in zip(tokens, self._pass(batch, places), strict=True):
                    row.append(token)
            return {"first": first - begun, "rest": time.perf_counter() - first, "tokens": tokens}
        finally:
            lib.llama_batch_free(batch)

    def _prepare(self, texts: int, length: int, total: int) -> None:
        if self.shape != (texts, length):
            if self.context:
                lib.llama_free(self.context)
            params = lib.llama_context_default_params()
            room = -(-length // 256) * 256  # llama.cpp rounds up to this itself
            params.n_ctx, params.n_seq_max, params.n_batch = texts * room, texts, max(total, 32)
            params.n_threads = params.n_threads_batch = self.threads
            params.no_perf = True
            self.context, self.shape = lib.llama_init_from_model(self.model, params), (texts, length)
            if not self.context:
                raise ValueError(f"llama.cpp could not make a context for {texts} texts of {length} tokens")
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def _pass(self, batch: Any, places: list[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (token, place, text, wanted); the likeliest next token of each wanted one."""
        batch.n_tokens = len(places)
        for i, (token, place, text, wanted) in enumerate(places):
            batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
        if lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        found = []
        for i, (*_, wanted) in enumerate(places):
            if wanted:
                logits = lib.llama_get_logits_ith(self.context, i)
                found.append(int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()))
        return found


def start(args: argparse.Namespace) -> tuple[Answer, Run]:
    path = args.model.with_name(f"{args.model.name}-bf16.gguf")
    if not path.exists():
        write(args.model, path)
    if args.precision != "bf16":
        source, path = path, args.model.with_name(f"{args.model.name}-{args.precision}.gguf")
        if not path.exists():
            quantise(source, path, args.precision, args.threads)
    model = Model(path, args.threads)
    system = lib.llama_print_system_info().decode()
    size = lib.llama_model_size(model.model)
    about = {
        "versions": {"llama-cpp-python": __version__},
        "weight_bytes": size,
        "built_with": " ".join(system.split()),
    }
    return about, model.run


if __name__ == "__main__":
    parsed = arguments(__doc__, ("bf16", "q8_0", "q4_1")).parse_args()
    serve(lambda: start(parsed))
