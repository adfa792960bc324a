"""What tests of all verbs share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from depthdial.cli import main


@pytest.fixture
def failed(capsys) -> Callable[..., str]:
    """`failed(*args)`: run what must fail with exit code 2 and no traceback; gives the one line it says."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(args)
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("depthdial: error: ")]
        assert caught.value.code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, err
        return lines[0].removeprefix("depthdial: error: ")

    return run
