"""From a call as it came to what is to be done: an answer known already, or a method with its parameters decoded."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import TYPE_CHECKING

import msgspec

from fdbox.errors import INTERFACE
from fdbox.varlink.interface import METHODS, Method

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fdbox.varlink.wire import CallHeader

SERVICE = "org.varlink.service"
_FIELD = re.compile(r"field `([^`]+)`|`\$\.([^`.\[]+)")


class Refusal(Exception):
    """Raised when Varlink itself answers a call with an error; `name` and `parameters` go on the wire."""

    def __init__(self, error: str, **parameters: str) -> None:
        """Take the error's name without its interface, and exactly the parameters it has there."""
        super().__init__(f"{error} {parameters}")
        self.name: str = f"{SERVICE}.{error}"
        self.parameters: Mapping[str, str] = parameters


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What GetInfo answers."""

    vendor: str = "fdbox"
    product: str = "fdbox"
    version: str = "0"
    url: str = "https://example.org/fdbox"
    interfaces: list[str] = msgspec.field(default_factory=lambda: [SERVICE, INTERFACE])


class InterfaceDescription(msgspec.Struct, frozen=True):
    """What GetInterfaceDescription answers."""

    description: str


class Invocation(msgspec.Struct, frozen=True):
    """A call of one of our methods: its name without the interface, and its parameters."""

    name: str
    method: Method
    parameters: msgspec.Struct


class _Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _DescriptionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interface: str


@functools.cache
def interface_text(interface: str) -> str:
    """Return the interface file, which is the contract."""
    file = resources.files("fdbox.varlink").joinpath(f"{interface}.varlink")
    return file.read_text(encoding="utf-8")


@functools.cache
def _decoder(request: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(request)


def _decode(request: type[msgspec.Struct], raw: msgspec.Raw) -> msgspec.Struct:
    try:
        return _decoder(request).decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        found = _FIELD.search(str(error))
        parameter = (found[1] or found[2]) if found else "parameters"
        raise Refusal("InvalidParameter", parameter=parameter) from error


class Dispatcher:
    """Finds what a call asks for; `implemented` are the methods that somebody serves."""

    def __init__(self, implemented: Collection[str], *, info: Info | None = None) -> None:
        """Raise ValueError if a method is implemented that the interface does not have."""
        if strangers := set(implemented) - set(METHODS):
            raise ValueError(f"not in the interface: {sorted(strangers)}")
        self._info = info or Info()
        self._known = {f"{INTERFACE}.{name}": (name, METHODS[name]) for name in implemented}

    def dispatch(self, header: CallHeader) -> Invocation | msgspec.Struct:
        """Return what to invoke, or the reply itself where the protocol's own interface is asked.

        Raises:
            Refusal: the call is answered with one of Varlink's own errors.
        """
        known = self._known.get(header.method)
        if known is None or header.upgrade:
            return self._own(header)
        name, method = known
        if method.more and not header.more:
            raise Refusal("ExpectedMore")
        return Invocation(name, method, _decode(method.request, header.parameters))

    def _own(self, header: CallHeader) -> msgspec.Struct:
        interface, _, name = header.method.rpartition(".")
        if interface not in self._info.interfaces:
            raise Refusal("InterfaceNotFound", interface=interface)
        if interface == INTERFACE and name in METHODS:
            raise Refusal("MethodNotImplemented", method=header.method)
        if header.upgrade:
            raise Refusal("MethodNotImplemented", method=header.method)
        if header.method == f"{SERVICE}.GetInfo":
            _decode(_Nothing, header.parameters)
            return self._info
        if header.method == f"{SERVICE}.GetInterfaceDescription":
            return self._describe(_decode(_DescriptionRequest, header.parameters))
        raise Refusal("MethodNotFound", method=header.method)

    def _describe(self, request: msgspec.Struct) -> InterfaceDescription:
        assert isinstance(request, _DescriptionRequest)
        if request.interface not in self._info.interfaces:
            raise Refusal("InterfaceNotFound", interface=request.interface)
        return InterfaceDescription(interface_text(request.interface))
