from __future__ import annotations

import msgspec
import pytest

from fdbox.varlink import interface
from fdbox.varlink.dispatch import Dispatcher, Info, InterfaceDescription, Invocation, Refusal
from fdbox.varlink.wire import CallHeader


def dispatch(
    method: str, parameters: str = "{}", *, more: bool = False, upgrade: bool = False
) -> Invocation | msgspec.Struct:
    dispatcher = Dispatcher({"Get", "Subscribe"}, info=Info(version="7"))
    raw = msgspec.Raw(parameters.encode())
    return dispatcher.dispatch(CallHeader(method, raw, more=more, upgrade=upgrade))


def test_a_call_of_ours() -> None:
    found = dispatch("io.fdbox.Get", '{"box":"b","names":["n"]}')
    assert isinstance(found, Invocation)
    assert found.name == "Get"
    assert found.parameters == interface.NamesRequest(box="b", names=["n"])


def test_the_service_describes_itself() -> None:
    info = dispatch("org.varlink.service.GetInfo")
    assert isinstance(info, Info)
    assert (info.version, info.interfaces) == ("7", ["org.varlink.service", "io.fdbox"])
    for name in info.interfaces:
        found = dispatch("org.varlink.service.GetInterfaceDescription", f'{{"interface":"{name}"}}')
        assert isinstance(found, InterfaceDescription)
        assert f"interface {name}\n" in found.description


@pytest.mark.parametrize(
    ("method", "parameters", "error", "about"),
    [
        ("nothing", "{}", "InterfaceNotFound", {"interface": ""}),
        ("com.example.Do", "{}", "InterfaceNotFound", {"interface": "com.example"}),
        ("io.fdbox.Fly", "{}", "MethodNotFound", {"method": "io.fdbox.Fly"}),
        ("io.fdbox.Put", "{}", "MethodNotImplemented", {"method": "io.fdbox.Put"}),
        ("io.fdbox.Get", "{}", "InvalidParameter", {"parameter": "box"}),
        ("io.fdbox.Get", '{"box":1,"names":[]}', "InvalidParameter", {"parameter": "box"}),
        ("io.fdbox.Get", '{"box":"b","names":[3]}', "InvalidParameter", {"parameter": "names"}),
        ("io.fdbox.Get", '{"box":"b","names":[],"x":1}', "InvalidParameter", {"parameter": "x"}),
        ("io.fdbox.Get", "[]", "InvalidParameter", {"parameter": "parameters"}),
        ("io.fdbox.Subscribe", '{"name":"me"}', "ExpectedMore", {}),
        ("org.varlink.service.Fly", "{}", "MethodNotFound", {"method": "org.varlink.service.Fly"}),
        (
            "org.varlink.service.GetInterfaceDescription",
            '{"interface":"x.y"}',
            "InterfaceNotFound",
            {"interface": "x.y"},
        ),
    ],
)
def test_refusals(method: str, parameters: str, error: str, about: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        dispatch(method, parameters)
    assert caught.value.name == f"org.varlink.service.{error}"
    assert caught.value.parameters == about


def test_an_upgrade_is_refused() -> None:
    with pytest.raises(Refusal):
        dispatch("io.fdbox.Get", '{"box":"b","names":[]}', upgrade=True)
    with pytest.raises(Refusal):
        dispatch("org.varlink.service.GetInfo", "{}", upgrade=True)


def test_a_handler_for_an_unknown_method_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Fly"):
        Dispatcher({"Fly"})
