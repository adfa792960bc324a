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
# networks, processes and signals; owners, modes and times of files; mounts, clocks and the kernel itself
_REFUSED = {
    "x86_64": (
        41, 42, 53, 56, 57, 58, 59, 62, 76, 90, 91, 92, 93, 94, 101, 132, 133, 141, 155, 160, 161, 164, 165, 166,
        167, 168, 169, 170, 171, 175, 176, 188, 189, 190, 197, 198, 199, 200, 227, 234, 235, 246, 248, 249, 250, 251,
        259, 260, 261, 268, 272, 280, 298, 302, 303, 304, 305, 308, 310, 311, 313, 320, 321, 322, 323, 424, 425, 426,
        427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 442, 452,
    ),
    "aarch64": (
        5, 6, 7, 14, 15, 16, 33, 39, 40, 41, 45, 51, 52, 53, 54, 55, 88, 97, 104, 105, 106, 112, 117, 129, 130, 131,
        140, 142, 161, 162, 164, 170, 198, 199, 203, 217, 218, 219, 220, 221, 224, 225, 240, 241, 261, 264, 265, 266,
        268, 270, 271, 273, 280, 281, 282, 294, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 442,
        452,
    ),
}  # fmt: skip


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
    made = _call(libc.syscall, _LANDLOCK_CREATE, rules, ctypes.c_size_t(8), 0)
    _call(libc.syscall, _LANDLOCK_RESTRICT, made, 0)
    os.close(made)


def _seccomp(libc: ctypes.CDLL) -> None:
    machine = os.uname().machine
    refused = _REFUSED[machine]
    end = len(refused) + 3  # the line that refuses
    lines = [(0x20, 0, 0, 4), (0x15, 0, end, _ARCH[machine]), (0x20, 0, 0, 0), (0x35, end - 2, 0, 0x40000000)]
    lines += [(0x15, len(refused) - i, 0, number) for i, number in enumerate(refused)]
    lines += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
    _call(libc.prctl, _SET_SECCOMP, _FILTER, program, 0, 0)


def _call(call, *args):
    found = call(*args)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


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
        said = " ".join(f"failed: {type(error).__name__}: {error}".split())[:300]
        os.write(out, said.encode(errors="replace") + b"\n")
        os._exit(0)
    os.write(out, b"passed\n")
    os._exit(0)


if __name__ == "__main__":
    main()
