"""MKL's kernels are chosen before several threads can ask for them at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from depthdial.core import vml


def test_every_function_is_called_on_one_number(monkeypatch: pytest.MonkeyPatch):
    seen = []
    for name in vml.FUNCTIONS:
        call = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda x, name=name, call=call: (seen.append((name, x.dtype, x.numel())), call(x))[1]
        )
    vml.settle()
    assert set(seen) == {(name, dtype, 1) for name in vml.FUNCTIONS for dtype in (torch.float32, torch.float64)}


def test_it_is_done_wherever_models_are_opened():
    """In a process of its own: whoever imports a module of `models`, as vLLM's processes do, has it done."""
    code = """
import torch
calls = []
cos = torch.cos
torch.cos = lambda x: (calls.append(x.numel()), cos(x))[1]
import depthdial.models.own
assert calls[:1] == [1], calls
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
