"""What makes one machine train well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from depthdial.train.machine import one_device


def test_one_process_keeps_to_one_gpu(caplog: pytest.LogCaptureFixture):
    """transformers would copy the model to all that it sees, and run it in threads."""
    args: Any = SimpleNamespace(n_gpu=4, _n_gpu=4)
    assert one_device(args)._n_gpu == 1 and "torchrun --nproc-per-node" in caplog.text
    alone: Any = SimpleNamespace(n_gpu=1, _n_gpu=1)
    caplog.clear()
    assert one_device(alone)._n_gpu == 1 and not caplog.text
