"""Run by `make test-wheel` where the wheel is, but neither a compiler nor this tree: kernels are inside it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import depthdial
from depthdial.kernels.cpu import build
from depthdial.kernels.cpu.native import _loaded


def refuse(message: str) -> None:
    raise AssertionError(message)


assert Path(depthdial.__file__).is_relative_to(sys.prefix), f"not the wheel: {depthdial.__file__}"
assert not any(map(shutil.which, ("c++", "g++", "clang++"))), "a compiler is in PATH"
assert {path.stem for path in build.BUILT.iterdir()} == set(build.ISAS) - {build.EMULATED}
for isa in build.supported():
    assert _loaded(isa, refuse)[0] == isa
said = subprocess.run(
    ["depthdial", "generate", "The sky is", "--max-new-tokens", "8", "--budget", "0.85", "--json"],
    capture_output=True,
    text=True,
)
assert said.returncode == 0, said.stderr
assert "compil" not in said.stderr, said.stderr
assert json.loads(said.stdout)["text"]
print(f"the wheel runs {', '.join(build.supported())} without a compiler")
