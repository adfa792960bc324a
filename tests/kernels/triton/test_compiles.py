"""Every kernel compiles for Hopper at the sizes of an 8B model, within its registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = 232448
"""Bytes of shared memory that a block may have on sm_90."""


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "variant"), [(1, "llama"), (1, "gemma"), (256, "llama"), (256, "gemma")])
def test_kernels_compile_for_hopper(rows: int, variant: str, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_sm90.py")
    command = [sys.executable, str(script), str(rows), variant]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    kernels = [json.loads(line) for line in ran.stdout.splitlines()]
    names = {kernel["kernel"] for kernel in kernels}
    assert {"_linear", "_up", "_down", "_route", "_decode", "_prefill", "_multiply"} <= names
    for kernel in kernels:
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["spilled"] == 0, kernel
        if kernel["kernel"] in ("_linear", "_up", "_down"):
            assert kernel["wide_copies"], f"weights are not loaded 16 bytes at a time: {kernel}"
            assert kernel["products"] or kernel["warpgroup_products"], f"no tensor core: {kernel}"
