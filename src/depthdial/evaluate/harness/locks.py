"""The child of `sandbox`: lock this process in, then run the program given on standard input. Imports nothing of ours.

Says "locked" once every lock holds, and at the end "passed" or "failed: ...". A program that looks for that pipe can
write "passed" into it: what is guarded is the machine, not the score.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# networks, processes and signals; the scheduling of any process, its memory and its locks (another waits for them);
# shared memory and queues, which outlive their process; owners, modes and times of files; mounts, clocks, watches and
# the kernel itself; `openat2`, whose flags a filter cannot see
_REFUSED = {
    "x86_64": (
        29, 30, 31, 41, 42, 53, 56, 57, 58, 59, 62, 64, 65, 66, 68, 69, 70, 71, 73, 76, 90, 91, 92, 93, 94, 101, 103,
        129, 132, 133, 141, 142, 144, 153, 155, 159, 160, 161, 162, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172,
        173, 175, 176, 179, 180, 188, 189, 190, 197, 198, 199, 200, 203, 206, 220, 227, 234, 235, 240, 241, 246, 248,
        249, 250, 251, 253, 256, 259, 260, 261, 268, 272, 279, 280, 294, 297, 298, 300, 301, 302, 303, 304, 305, 306,
        308, 310, 311, 313, 314, 320, 321, 322, 323, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 437,
        438, 440, 442, 443, 448, 452,
    ),
    "aarch64": (
        0, 5, 6, 7, 14, 15, 16, 26, 30, 32, 33, 39, 40, 41, 42, 45, 51, 52, 53, 54, 55, 58, 60, 81, 88, 89, 97, 104,
        105, 106, 112, 116, 117, 118, 119, 122, 129, 130, 131, 138, 140, 142, 161, 162, 164, 170, 171, 180, 181, 186,
        187, 188, 189, 190, 191, 192, 193, 194, 195, 196, 198, 199, 203, 217, 218, 219, 220, 221, 224, 225, 238, 239,
        240, 241, 261, 262, 263, 264, 265, 266, 267, 268, 270, 271, 273, 274, 280, 281, 282, 294, 424, 425, 426, 427,
        428, 429, 430, 431, 432, 433, 434, 435, 437, 438, 440, 442, 443, 448, 452,
    ),
}  # fmt: skip
_LATER = 453
"""Calls from this number on are newer than these lists: all are refused, and so are those of x32, which lie higher."""
_JUMP_EQUAL, _JUMP_SET, _TRUNCATE = 0x15, 0x45, 0o1000
# having the kernel send a signal when a pipe is written to (F_SETOWN, F_SETSIG, F_SETOWN_EX), locks of files that
# others wait for (F_SETLK, F_SETLKW, of open files, F_SETLEASE), and hints that stay with a file (F_SET_RW_HINT)
_FCNTL = (6, 7, 8, 10, 15, 37, 38, 1024, 1036, 1038)
# (call, its argument, test, value): emptying a file that is opened to be read, which old Landlocks let through
_REFUSED_WITH = {
    "x86_64": (
        (2, 1, _JUMP_SET, _TRUNCATE),
        (257, 2, _JUMP_SET, _TRUNCATE),
        *((72, 1, _JUMP_EQUAL, n) for n in _FCNTL),
    ),
    "aarch64": ((56, 2, _JUMP_SET, _TRUNCATE), *((25, 1, _JUMP_EQUAL, n) for n in _FCNTL)),
}
_IOCTL = {"x86_64": 16, "aarch64": 29}
# what Python asks of a file that it opens: is it a terminal, how wide, how much is there, does it block, is it
# inherited; all else is refused: flags of files, frozen file systems, typing into a terminal
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def lock(memory: int, seconds: int) -> None:
    """OSError where one of the locks does not hold."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl, _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _landlock(libc)
    _seccomp(libc)


def _landlock(libc: ctypes.CDLL) -> None:
    """No right to change a file system, with no exception."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "no Landlock")
    writes = sum(1 << bit for bit in (1, *range(4, 13)))  # write; remove, make; reading is not handled, so allowed
    writes |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)  # rename across folders; truncate
    rules = ctypes.create_string_buffer(struct.pack("Q", writes))
    ruleset = _call(libc.syscall, _LANDLOCK_CREATE, rules, ctypes.c_size_t(8), 0)
    _call(libc.syscall, _LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _seccomp(libc: ctypes.CDLL) -> None:
    machine = os.uname().machine
    # (code, what to jump over if so, if not so, value); None is the way to the last line, which refuses
    lines: list[tuple[int, int | None, int | None, int]] = [
        (0x20, 0, 0, 4), (_JUMP_EQUAL, 0, None, _ARCH[machine]), (0x20, 0, 0, 0), (0x35, None, 0, _LATER),
    ]  # fmt: skip
    lines += [(_JUMP_EQUAL, None, 0, number) for number in _REFUSED[machine]]
    for number, argument, test, value in _REFUSED_WITH[machine]:
        lines += [(_JUMP_EQUAL, 0, 3, number), (0x20, 0, 0, 16 + 8 * argument), (test, None, 0, value), (0x20, 0, 0, 0)]
    requests = [(_JUMP_EQUAL, len(_IOCTL_REQUESTS) - i, 0, value) for i, value in enumerate(_IOCTL_REQUESTS)]
    lines += [(_JUMP_EQUAL, 0, len(requests) + 2, _IOCTL[machine]), (0x20, 0, 0, 24), *requests, (0x06, 0, 0, _REFUSE)]
    lines += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE)]
    instructions = []
    for left, (code, so, not_so, value) in zip(reversed(range(len(lines))), lines, strict=True):
        jumps = (left - 1 if jump is None else jump for jump in (so, not_so))
        instructions.append(struct.pack("HBBI", code, *jumps, value))
    program = ctypes.create_string_buffer(b"".join(instructions))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(program)))
    _call(libc.prctl, _SET_SECCOMP, _FILTER, header, 0, 0)


def _call(call, *args):
    result = call(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main() -> None:
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    program = sys.stdin.buffer.read().decode()
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    sys.set_int_max_str_digits(0)
    try:
        lock(memory, seconds)
    except OSError as error:
        os.write(out, f"cannot lock: {error}\n".encode())
        os._exit(1)
    os.write(out, b"locked\n")
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        reason = " ".join(f"failed: {type(error).__name__}: {error}".split())[:300]
        os.write(out, reason.encode(errors="replace") + b"\n")
        os._exit(0)
    os.write(out, b"passed\n")
    os._exit(0)


if __name__ == "__main__":
    main()
