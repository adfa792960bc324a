"""Programs that nobody has read: what they must be able to do, and what they must not."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from depthdial.evaluate.harness import sandbox
from depthdial.evaluate.harness.code_eval import CodeEval, estimate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks of the Linux kernel")


def test_ordinary_programs_pass_or_fail_by_their_tests():
    sandbox.check()
    assert sandbox.run("import math, typing, heapq\nassert math.gcd(4, 6) == 2\nprint('hello')") == "passed"
    assert sandbox.run("assert 1 == 2, 'no'") == "failed: AssertionError: no"
    assert sandbox.run("def (:").startswith("failed: SyntaxError")
    assert sandbox.run("raise SystemExit(0)") != "passed"
    assert sandbox.run("import os; os._exit(0)") != "passed"


def test_time_and_memory_end():
    assert sandbox.run("while True: pass", seconds=0.5) == "timed out"
    assert "MemoryError" in sandbox.run("x = bytearray(1 << 32)")


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill({pid}, 0)",
        "open('{there}', 'w')",
        "open('{there}', 'a').write('x')",
        "open('new', 'x')",
        "import os; os.remove('{there}')",
        "import os; os.rename('{there}', '{there}.2')",
        "import os; os.truncate('{there}', 0)",
        "import os; os.chmod('{there}', 0)",
        "import os; os.utime('{there}', (1, 1))",
        "import os; os.symlink('a', 'b')",
        "import os; os.mkdir('{there}.d')",
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))",
        "import os; os.open('{there}', os.O_RDONLY | os.O_TRUNC)",
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {pid})",
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], 10, 9)  # F_SETSIG",
    ],
)
def test_nothing_outside_is_touched(tmp_path, program):
    there = tmp_path / "file"
    there.write_text("kept")
    before = there.stat()
    found = sandbox.run(program.format(there=there, pid=os.getpid()))
    assert found.startswith("failed: ") and "SyntaxError" not in found, found
    after = there.stat()
    assert there.read_text() == "kept" and (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert sorted(tmp_path.iterdir()) == [there]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of its calls")
@pytest.mark.parametrize(("name", "call"), [("shmget", "29, 0, 4096, 0o1600"), ("sigqueue", "129, {pid}, 9, told")])
def test_calls_that_python_does_not_have(name, call):
    head = "import ctypes, struct; told = ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128)\n"
    made = "libc = ctypes.CDLL(None, use_errno=True)\nfound = libc.syscall({})\nassert found >= 0, ctypes.get_errno()"
    program = head + made.format(call.format(pid=os.getpid()))
    assert sandbox.run(program) == "failed: AssertionError: 1", name


def test_what_it_says_does_not_fill_our_memory():
    assert "wrote into the pipe" in sandbox.run("import os\nwhile True: os.write(3, b'x' * 65536)")
    assert sandbox.run("import os\nos.close(3)\nwhile True: pass", seconds=0.5) == "timed out"


def test_a_file_can_be_read_and_asked_for_its_flags():
    """The filter looks at arguments: calls with harmless ones go through."""
    program = f"import fcntl\nfile = open({__file__!r})\nassert file.read() and fcntl.fcntl(file, fcntl.F_GETFL) >= 0"
    assert sandbox.run(program) == "passed"


def test_no_network_not_even_here():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert "PermissionError" in sandbox.run(program)


def test_where_locks_are_refused_nothing_runs(monkeypatch):
    sandbox.check.cache_clear()
    monkeypatch.setattr(sandbox, "_run", lambda program, seconds: "failed: cannot lock: no Landlock")
    with pytest.raises(ValueError, match="does not lock programs in"):
        sandbox.run("print()")
    monkeypatch.setattr(sandbox, "_run", lambda program, seconds: "passed")
    with pytest.raises(ValueError, match="does not hold"):
        sandbox.run("print()")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="on Linux"):
        sandbox.run("print()")
    sandbox.check.cache_clear()


def test_pass_at_k_of_candidates():
    right, wrong = "def f(x):\n    return x", "def f(x):\n    return 0"
    found, details = CodeEval().compute(["assert f(1) == 1"] * 2, [[right, wrong], [wrong, wrong]], k=[1, 2, 9])
    assert found == {"pass@1": pytest.approx(0.25), "pass@2": pytest.approx(0.5)}
    assert [told["passed"] for _, told in details[0]] == [True, False]


def test_estimate_is_the_chance_of_a_draw():
    assert estimate(5, 0, 1) == 0 and estimate(5, 5, 1) == 1 and estimate(4, 3, 2) == 1
    assert estimate(4, 2, 2) == pytest.approx(1 - 1 / 6)  # 1 of 6 pairs has none that passes
