"""Compiles the C++ of this folder once for a machine and keeps the library in the user's cache folder.

The library is plain C to the outside and links neither torch nor Python, so its key is the sources, the flags and the
compiler. Several processes may build at once: one does, the others wait, and a library appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock

SOURCES = Path(__file__).parent / "csrc"
BUILT = Path(__file__).parent / "built"
"""Of a wheel: a library for each instruction set (hatch_build.py). A source tree has none."""
_COMMON = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-w"),
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
)
_AVX512_FLAGS = (
    *("-DDEPTHDIAL_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni"),
    *("-mfma", "-mprefer-vector-width=512"),
)
_AVX512_NEEDS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "fma")
ISAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amx": (
        (*_AVX512_FLAGS, "-DDEPTHDIAL_AMX", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        (*_AVX512_NEEDS, "amx_tile", "amx_bf16", "amx_int8"),
    ),
    "avx512": (_AVX512_FLAGS, _AVX512_NEEDS),
    "avx2": (("-DDEPTHDIAL_AVX2", "-mavx2", "-mfma", "-mf16c"), ("avx2", "fma", "f16c")),
    "portable": ((), ()),
    "amx-emulated": ((*_AVX512_FLAGS, "-DDEPTHDIAL_AMX", "-DDEPTHDIAL_AMX_EMULATED"), _AVX512_NEEDS),
}
"""Instruction sets, best first: the compiler's flags, and the processor's features they need (as Linux names them)."""
EMULATED = "amx-emulated"
"""What is written for AMX with tiles in AVX-512: for tests on machines without AMX, and never chosen by itself."""

Log = Callable[[str], None]


class Unavailable(RuntimeError):
    """There are no native kernels here; the message says why, and what would change that."""


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def supported() -> tuple[str, ...]:
    """The instruction sets of this processor, best first; only the portable one where its features cannot be read."""
    return tuple(name for name in all_isas() if name != EMULATED)


def all_isas() -> tuple[str, ...]:
    """`supported`, and last the emulated one where AVX-512 can emulate it."""
    features = _features()
    return tuple(name for name, (_, needs) in ISAS.items() if features.issuperset(needs))


def library(isa: str, log: Log = to_stderr, folder: Path | None = None) -> Path:
    """The compiled library for an instruction set; the first call on a machine takes seconds and says so to `log`. CXX
    and CXXFLAGS count, as for any build; without them a wheel's own library is taken.

    Raises Unavailable where there is no compiler, where it fails, or where nothing can be written.
    """
    if (BUILT / f"{isa}.so").exists() and not os.environ.get("CXX") and not os.environ.get("CXXFLAGS"):
        return BUILT / f"{isa}.so"
    compiler, version = _compiler(os.environ.get("CXX"))
    flags = (*_COMMON, *ISAS[isa][0], *shlex.split(os.environ.get("CXXFLAGS", "")))
    key = hashlib.sha256(repr((flags, version, platform.system(), platform.machine())).encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(source.name.encode() + source.read_bytes())
    folder = folder or _cache_folder()
    path = folder / f"cpu-{isa}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(compiler, flags, path, isa, log)
    except OSError as error:
        raise Unavailable(
            f"the CPU kernels cannot be written to {folder} ({error.strerror}); set XDG_CACHE_HOME"
        ) from error
    return path


def _compile(compiler: str, flags: tuple[str, ...], path: Path, isa: str, log: Log) -> None:
    log(f"compiling the CPU kernels ({isa}), once for this machine ...")
    begin = time.perf_counter()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        command = [compiler, *flags, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise Unavailable(f"{compiler} could not compile the CPU kernels for {isa}: {first}")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    log(f"compiled the CPU kernels ({isa}) in {time.perf_counter() - begin:.1f} s")


@cache
def _compiler(named: str | None) -> tuple[str, str]:
    """The C++ compiler and the first line of its version. CXX goes first, as for any build."""
    for name in (named, "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            asked = subprocess.run([path, "--version"], capture_output=True, text=True)
            if asked.returncode == 0:
                return path, asked.stdout.partition("\n")[0]
    raise Unavailable("no C++ compiler was found, so decoding runs on PyTorch's own kernels; install g++ or clang++")


@cache
def _features() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "depthdial" / "kernels"
