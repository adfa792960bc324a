"""Messages over a real pair of sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.serve.wire import AsyncWire, Wire, encode_message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5))
def test_messages_arrive_whole_and_in_order_both_ways(messages):
    async def run() -> list:
        ours, theirs = socket.socketpair()
        far, near = Wire(theirs), await AsyncWire.over(ours)
        for message in messages:
            near.send(message)
        there = [await asyncio.to_thread(far.receive) for _ in messages]
        for message in there:
            assert message is not None
            far.send(message)
        back = [await near.receive() for _ in messages]
        near.close()
        assert await asyncio.to_thread(far.receive) is None
        return back

    assert asyncio.run(run()) == messages


def test_a_message_cut_off_is_none():
    async def run() -> None:
        ours, theirs = socket.socketpair()
        near = await AsyncWire.over(ours)
        with theirs:
            theirs.sendall(encode_message({"a": 1})[:-1])
        assert await near.receive() is None
        near.send({"to": "nobody"})  # is dropped
        near.close()

    asyncio.run(run())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(number):
    with pytest.raises(ValueError, match="JSON"):
        encode_message({"x": number})
