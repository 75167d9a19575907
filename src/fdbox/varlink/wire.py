"""Framing: which bytes are a message, and which descriptors came with it.

A message is JSON and a NUL. The kernel attaches descriptors to bytes, not to messages: a read that runs over the end of
message A into message B may bring B's descriptors, and nobody could tell. Whoever reads therefore

1. peeks (without a control buffer: a peek with one would duplicate descriptors),
2. asks `chunk_length` how many of the bytes seen may be read,
3. reads exactly those, with descriptors, and feeds both to a `Decoder`.

So a chunk never crosses a NUL. Descriptors come with the first chunk of a message or not at all, because whoever sends
attaches them to the `sendmsg` that starts it. A decoder is in one of three states:

    IDLE     between messages          --chunk without NUL--> PARTIAL    --chunk with NUL--> IDLE, a message is out
    PARTIAL  half a message is here    --chunk without NUL--> PARTIAL    --chunk with NUL--> IDLE, a message is out
    BROKEN   the other side broke the rules; every further chunk is refused

A descriptor belongs to the decoder from `feed` (also when that raises) until it leaves with its message or by `drain`.
What a descriptor is does not matter here.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from fdbox.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_MESSAGE = 1 << 20
MAX_REPLY = 64 << 20  # what a client takes: a listing is as long as the quotas allow
MAX_DESCRIPTORS = 253  # the kernel's SCM_MAX_FD

T = TypeVar("T")
_MALFORMED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class CallHeader(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A call as it is on the wire; its parameters are not looked into yet."""

    method: str
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    oneway: bool = False
    more: bool = False
    upgrade: bool = False


class ReplyHeader(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A reply as it is on the wire; with `error` it says why there is none."""

    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    continues: bool = False
    error: str | None = None


class _CallOut(msgspec.Struct, omit_defaults=True):
    """What is sent: `parameters` has no default, so it is always there (systemd 257 wants it)."""

    method: str
    parameters: msgspec.Struct
    oneway: bool = False
    more: bool = False


class _ReplyOut(msgspec.Struct, omit_defaults=True):
    parameters: msgspec.Struct
    continues: bool = False


class _ErrorOut(msgspec.Struct):
    error: str
    parameters: Mapping[str, object]


class Message(msgspec.Struct, Generic[T]):
    """One whole message: its text without the NUL, and the descriptors that came with it."""

    text: bytes
    descriptors: list[T]


class State(enum.Enum):
    """Where a decoder stands."""

    IDLE = "idle"
    PARTIAL = "partial"
    BROKEN = "broken"


_encode = msgspec.json.Encoder().encode
_call_decoder = msgspec.json.Decoder(CallHeader)
_reply_decoder = msgspec.json.Decoder(ReplyHeader)


def chunk_length(peeked: bytes) -> int:
    """Return how many of the bytes seen belong to the message they start with."""
    return peeked.find(b"\0") + 1 or len(peeked)


def encode_call(
    method: str, parameters: msgspec.Struct, *, more: bool = False, oneway: bool = False
) -> bytes:
    """Return the message that calls `method` (with its interface)."""
    return _encode(_CallOut(method, parameters, oneway, more)) + b"\0"


def encode_reply(parameters: msgspec.Struct, *, continues: bool = False) -> bytes:
    """Return the message that answers a call."""
    return _encode(_ReplyOut(parameters, continues)) + b"\0"


def encode_error(name: str, parameters: Mapping[str, object]) -> bytes:
    """Return the message that answers a call with an error."""
    return _encode(_ErrorOut(name, parameters)) + b"\0"


def decode_call(text: bytes) -> CallHeader:
    """Return the call in a message.

    Raises:
        ProtocolError: it is not JSON, or not a call, or has a key that Varlink does not know.
    """
    try:
        return _call_decoder.decode(text)
    except _MALFORMED as error:
        raise ProtocolError(f"a message is not a Varlink call: {error}") from error


def decode_reply(text: bytes) -> ReplyHeader:
    """Return the reply in a message.

    Raises:
        ProtocolError: it is not JSON, or not a reply, or has a key that Varlink does not know.
    """
    try:
        return _reply_decoder.decode(text)
    except _MALFORMED as error:
        raise ProtocolError(f"a message is not a Varlink reply: {error}") from error


class Decoder(Generic[T]):
    """Chunks in, messages out; see the rules at the top of this file."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        """Refuse messages of more than `limit` bytes."""
        self.state: State = State.IDLE
        self._limit = limit
        self._text = bytearray()
        self._descriptors: list[T] = []

    def feed(self, chunk: bytes, descriptors: Sequence[T] = ()) -> Message[T] | None:
        """Take what one read brought; return the message that it ended, if it did.

        Raises:
            ProtocolError: the other side broke the rules, now or before. The descriptors wait for `drain`.
        """
        first = self.state is State.IDLE
        self._descriptors.extend(descriptors)
        self._check(chunk, first=first, brought=len(descriptors))
        if chunk[-1] != 0:
            self._text += chunk
            self.state = State.PARTIAL
            return None
        text = chunk[:-1] if first else bytes(self._text + chunk[:-1])
        message = Message(text, self._descriptors)
        self._descriptors = []
        self._text.clear()
        self.state = State.IDLE
        return message

    def drain(self) -> list[T]:
        """Return the descriptors of the message that never became whole, and take no more chunks."""
        left, self._descriptors = self._descriptors, []
        self._text.clear()
        self.state = State.BROKEN
        return left

    def _check(self, chunk: bytes, *, first: bool, brought: int) -> None:
        fault = ""
        if self.state is State.BROKEN:
            fault = "bytes came after the connection was given up"
        elif not chunk:
            fault = "descriptors came without a message" if brought else "an empty chunk was read"
        elif brought and not first:
            fault = "descriptors came in the middle of a message"
        elif brought > MAX_DESCRIPTORS:
            fault = f"{brought} descriptors came with one message"
        elif len(self._text) + len(chunk) > self._limit:
            fault = f"a message is longer than {self._limit} bytes"
        elif chunk_length(chunk) != len(chunk):
            fault = "a read went over the end of a message"
        if fault:
            self.state = State.BROKEN
            raise ProtocolError(fault)
