"""Nothing that a terminal would obey gets through; everything that people read does."""

from __future__ import annotations

import sys

from depthdial.core.printable import printable


def test_what_a_terminal_obeys_is_escaped():
    assert printable("a\x1b[31m\x07b\r\n\t") == r"a\x1b[31m\x07b\r\n\t"
    assert printable("\x9b2J\x7f") == r"\x9b2J\x7f"
    assert printable("abc\u202edcb\u2066") == r"abc\u202edcb\u2066"
    assert printable("half\ud83d \u2028") == r"half\ud83d \u2028"


def test_names_in_any_script_stay():
    for name in ("café", "Ωμέγα 模型 🙂👩‍🚀", "a\\b [x] {y}"):
        assert printable(name) == name


def test_no_control_character_is_left():
    everything = printable("".join(map(chr, range(sys.maxunicode + 1))))
    assert not [sign for sign in everything if ord(sign) < 32 or 127 <= ord(sign) < 160]
    everything.encode()  # no half of a pair either
