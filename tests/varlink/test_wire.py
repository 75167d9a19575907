from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import ProtocolError
from fdbox.varlink import wire
from fdbox.varlink.interface import Nothing

CALL = wire.encode_call("io.fdbox.Status", Nothing())


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Cut a stream as a reader does who peeks: at most as asked, and never over a NUL."""
    found = []
    wanted = iter(sizes)
    while stream:
        length = wire.chunk_length(stream[: next(wanted, len(stream))])
        found.append(stream[:length])
        stream = stream[length:]
    return found


def test_parameters_are_always_sent() -> None:
    assert b'"parameters":{}' in CALL
    assert wire.encode_reply(Nothing()) == b'{"parameters":{}}\0'


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_message_whole_and_byte_by_byte(size: int) -> None:
    decoder: wire.Decoder[str] = wire.Decoder()
    parts = pieces(CALL, [size] * len(CALL))
    got = [decoder.feed(part, ["fd"] if not index else ()) for index, part in enumerate(parts)]
    assert got[:-1] == [None] * (len(parts) - 1)
    assert got[-1] == wire.Message(CALL[:-1], ["fd"])
    assert decoder.state is wire.State.IDLE
    assert decoder.drain() == []


def test_trailing_bytes_stay_in_the_socket() -> None:
    assert wire.chunk_length(CALL + b"{") == len(CALL)
    with pytest.raises(ProtocolError, match="over the end"):
        wire.Decoder().feed(CALL + b"{")


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.integers(0, 253)), max_size=5),
    st.lists(st.integers(1, 30), max_size=60),
)
def test_any_fragmentation(messages: list[tuple[bytes, int]], sizes: list[int]) -> None:
    texts = [text.replace(b"\0", b"") for text, _ in messages]
    decoder: wire.Decoder[tuple[int, int]] = wire.Decoder()
    got: list[wire.Message[tuple[int, int]]] = []
    starts = True
    for part in pieces(b"".join(text + b"\0" for text in texts), sizes):
        index = len(got)
        fds = [(index, n) for n in range(messages[index][1])] if starts else []
        message = decoder.feed(part, fds)
        starts = message is not None
        got += [message] if message else []
    assert [message.text for message in got] == texts
    assert [len(message.descriptors) for message in got] == [count for _, count in messages]
    assert all(fd[0] == i for i, message in enumerate(got) for fd in message.descriptors)


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        ([(b"", 0)], "empty chunk"),
        ([(b"", 1)], "without a message"),
        ([(b"{", 0), (b"}\0", 1)], "middle of a message"),
        ([(b"{", 254)], "254 descriptors"),
        ([(b"x" * 101, 1)], "longer than 100"),
        ([(b"x" * 60, 1), (b"x" * 41, 0)], "longer than 100"),
        ([(b"{}\0{", 1)], "over the end"),
    ],
)
def test_a_broken_rule_ends_it(chunks: list[tuple[bytes, int]], why: str) -> None:
    decoder: wire.Decoder[int] = wire.Decoder(100)
    with pytest.raises(ProtocolError, match=why):
        for chunk, count in chunks:
            decoder.feed(chunk, range(count))
    assert decoder.state is wire.State.BROKEN
    with pytest.raises(ProtocolError, match="given up"):
        decoder.feed(b"{}\0", [99])
    assert len(decoder.drain()) == sum(count for _, count in chunks) + 1
    assert decoder.drain() == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"method":1}',
        b'{"method":"a.b","fds":1}',
        b'{"method":"a.b","more":"yes"}',
        b"\xff\xfe",
        b'{"method":"\xff"}',
        b'{"method":"a.b","parameters":' + b"[" * 100_000,
    ],
)
def test_what_is_no_call(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_call(text)


def test_what_is_no_reply() -> None:
    with pytest.raises(ProtocolError):
        wire.decode_reply(b'{"reply":1}')


def test_two_ends_without_a_socket() -> None:
    client: wire.Decoder[int] = wire.Decoder()
    server: wire.Decoder[int] = wire.Decoder()
    asked = server.feed(wire.encode_call("io.fdbox.Get", Nothing(), more=True), [7])
    assert asked is not None
    call = wire.decode_call(asked.text)
    assert (call.method, call.more, call.oneway, asked.descriptors) == (
        "io.fdbox.Get",
        True,
        False,
        [7],
    )
    first = client.feed(wire.encode_reply(Nothing(), continues=True))
    last = client.feed(wire.encode_error("io.fdbox.Failed", {"message": "no"}))
    assert first is not None
    assert last is not None
    assert wire.decode_reply(first.text).continues
    assert wire.decode_reply(last.text).error == "io.fdbox.Failed"
