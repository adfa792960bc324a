"""Programs that nobody has read: what they must be able to do, and what they must not."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from depthdial.evaluate.harness import locks, sandbox
from depthdial.evaluate.harness.code_eval import CodeEval, estimate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks of the Linux kernel")


def test_ordinary_programs_pass_or_fail_by_their_tests():
    sandbox.check_sandbox()
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
        "import os; os.sched_setaffinity({pid}, {{0}})",
        "import os; os.sched_setscheduler({pid}, os.SCHED_IDLE, os.sched_param(0))",
        "import os; os.sched_setscheduler({pid}, os.SCHED_BATCH, os.sched_param(0))",
        "import os; os.sched_setparam({pid}, os.sched_param(0))",
        "import os; os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
        "import fcntl; fcntl.flock(open('{there}'), fcntl.LOCK_SH)",
        "import fcntl; fcntl.lockf(open('{there}'), fcntl.LOCK_SH)",
        "import fcntl, struct; fcntl.fcntl(open('{there}'), 37, struct.pack('hhqqi4x', 0, 0, 0, 0, 0))  # F_OFD_SETLK",
        "import fcntl; fcntl.fcntl(open('{there}'), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "import fcntl, struct; fcntl.ioctl(open('{there}'), 0x40086602, struct.pack('q', 0x40))  # chattr +d",
    ],
)
def test_nothing_outside_is_touched(tmp_path, program):
    there = tmp_path / "file"
    there.write_text("kept")
    before, affinity = there.stat(), os.sched_getaffinity(0)
    result = sandbox.run(program.format(there=there, pid=os.getpid()))
    assert result.startswith("failed: ") and "SyntaxError" not in result, result
    assert os.sched_getscheduler(0) == os.SCHED_OTHER and os.sched_getaffinity(0) == affinity
    after = there.stat()
    assert there.read_text() == "kept" and (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert sorted(tmp_path.iterdir()) == [there]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of its calls")
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("shmget", "29, 0, 4096, 0o1600"),
        ("sigqueue", "129, {pid}, 9, told"),
        ("sched_setattr", "314, {pid}, told, 0"),
        ("ioprio_set", "251, 1, {pid}, 0x6000"),
        ("migrate_pages", "256, {pid}, 0, 0, 0"),
        ("semctl of others", "66, 0, 0, 0"),
        ("msgctl of others", "71, 0, 0, 0"),
        ("mq_unlink", "241, b'there'"),
        ("fanotify_init", "300, 0, 0"),
        ("io_setup", "206, 65536, told"),
        ("sync", "162"),
        ("setxattrat, newer than the list", "463, -100, b'/', 0, b'user.a', told, 16"),
        ("file_setattr, newer than the list", "469, -100, b'/', told, 16, 0"),
        ("x32", "0x40000000 + 39"),
    ],
)
def test_calls_that_python_does_not_have(name, call):
    head = "import ctypes, struct; told = ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128)\n"
    output = "libc = ctypes.CDLL(None, use_errno=True)\nfound = libc.syscall({})\nassert found >= 0, ctypes.get_errno()"
    program = head + output.format(call.format(pid=os.getpid()))
    assert sandbox.run(program) == "failed: AssertionError: 1", name


@pytest.mark.skipif(not os.path.exists("/usr/include/asm-generic/unistd.h"), reason="needs the kernel's headers")
def test_both_machines_refuse_the_same_calls():
    """The numbers of Arm's calls cannot be tried on x86: they are compared by name."""
    text = Path("/usr/include/asm-generic/unistd.h").read_text()
    arm = {int(number): name for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    intel = {int(number): name for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)\b", text)}
    names = {arm[number] for number in locks._REFUSED["aarch64"] if number in arm}
    theirs = {intel[number] for number in locks._REFUSED["x86_64"] if number in intel}
    assert names == theirs & set(arm.values()) and len(names) > 80


def test_what_it_says_does_not_fill_our_memory():
    assert "wrote into the pipe" in sandbox.run("import os\nwhile True: os.write(3, b'x' * 65536)")
    assert sandbox.run("import os\nos.close(3)\nwhile True: pass", seconds=0.5) == "timed out"


def test_a_file_can_be_read_and_asked_for_its_flags():
    """The filter looks at arguments: calls with harmless ones go through."""
    program = f"import fcntl\nfile = open({__file__!r})\nassert file.read() and fcntl.fcntl(file, fcntl.F_GETFL) >= 0"
    assert sandbox.run(program) == "passed"
    request = f"import os\nfile = os.open({__file__!r}, 0)\nassert not os.isatty(file)\nos.set_inheritable(file, True)"
    assert sandbox.run(request) == "passed"


def test_no_network_not_even_here():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert "PermissionError" in sandbox.run(program)


def test_where_locks_are_refused_nothing_runs(monkeypatch):
    sandbox.check_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "_run", lambda program, seconds: "failed: cannot lock: no Landlock")
    with pytest.raises(ValueError, match="does not lock programs in"):
        sandbox.run("print()")
    monkeypatch.setattr(sandbox, "_run", lambda program, seconds: "passed")
    with pytest.raises(ValueError, match="does not hold"):
        sandbox.run("print()")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="on Linux"):
        sandbox.run("print()")
    sandbox.check_sandbox.cache_clear()


def test_pass_at_k_of_candidates():
    right, wrong = "def f(x):\n    return x", "def f(x):\n    return 0"
    result, details = CodeEval().compute(["assert f(1) == 1"] * 2, [[right, wrong], [wrong, wrong]], k=[1, 2, 9])
    assert result == {"pass@1": pytest.approx(0.25), "pass@2": pytest.approx(0.5)}
    assert [facts["passed"] for _, facts in details[0]] == [True, False]


def test_estimate_is_the_chance_of_a_draw():
    assert estimate(5, 0, 1) == 0 and estimate(5, 5, 1) == 1 and estimate(4, 3, 2) == 1
    assert estimate(4, 2, 2) == pytest.approx(1 - 1 / 6)  # 1 of 6 pairs has none that passes
