"""Which server ``--ray_address`` and what is found on the machine lead to."""

from __future__ import annotations

import pytest

from byzerllm.client.locate import Where, choose, same_cluster
from byzerllm.errors import InvalidInput, ServerUnavailable

RECORDED = "10.0.0.5:6379\n"


def choice(flag: str = "auto", variable: str | None = None, recorded: str = "", dead: str = "") -> Where:
    """The choice where every address answers but ``dead``."""
    environ = {} if variable is None else {"RAY_ADDRESS": variable}
    return choose(flag, environ, recorded, lambda address: "connection refused" if address == dead else "")


@pytest.mark.parametrize("flag", ["auto", ""])
@pytest.mark.parametrize(
    ("variable", "recorded", "said"),
    [
        (None, "", "Using this machine."),
        ("", "", "Using this machine."),
        (None, " \n", "Using this machine."),
        (None, "no address", "Using this machine."),
        (None, RECORDED, "Using the Ray cluster at 10.0.0.5:6379, which this machine belongs to."),
        ("auto", RECORDED, "Using the Ray cluster at 10.0.0.5:6379, which this machine belongs to."),
        ("auto", "", "Using this machine."),
        ("local", RECORDED, "Using this machine."),
        ("h:1", RECORDED, "Using the Ray cluster at h:1, which RAY_ADDRESS names."),
        ("ray://h:10001", "", "Using the Ray cluster at ray://h:10001, which RAY_ADDRESS names."),
    ],
)
def test_auto_takes_the_variable_then_what_ray_start_left(
    flag: str, variable: str | None, recorded: str, said: str
) -> None:
    assert str(choice(flag, variable, recorded)) == said


def test_a_cluster_that_was_stopped_is_named() -> None:
    where = choice(recorded=RECORDED, dead="10.0.0.5:6379")
    assert where.cluster == ""
    assert str(where) == (
        "Using this machine: the Ray cluster at 10.0.0.5:6379 that it belonged to does not answer (connection refused)."
    )


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.5:6379", "ray://head.example:10001", "[fd00::1]:6379"])
def test_an_address_is_that_cluster_whatever_else_there_is(address: str) -> None:
    where = choice(address, variable="other:1", recorded=RECORDED)
    assert str(where) == f"Using the Ray cluster at {address}."


@pytest.mark.parametrize("variable", ["h:1", "http://h:8265", "local"])
def test_embedded_never_looks_at_ray(variable: str) -> None:
    def fail(address: str) -> str:
        raise AssertionError(address)

    assert choose("embedded", {"RAY_ADDRESS": variable}, RECORDED, fail) == Where()


@pytest.mark.parametrize(
    ("flag", "variable", "asked_by"), [("h:1", None, "--ray_address"), ("auto", "h:1", "RAY_ADDRESS")]
)
def test_a_cluster_asked_for_by_name_must_answer(flag: str, variable: str | None, asked_by: str) -> None:
    with pytest.raises(ServerUnavailable, match=f"h:1, which {asked_by} names: connection refused") as caught:
        choice(flag, variable, RECORDED, dead="h:1")
    assert "--ray_address embedded" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    ["head", "head:", ":6379", "head:port", "head:0", "head:65536", "a b:1", "http://h:8265", "ray://h", "h:1\n"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no address of a Ray cluster") as caught:
        choice(text)
    assert caught.value.param == "ray_address"
    if text.strip() == text:
        with pytest.raises(InvalidInput, match=r"^RAY_ADDRESS ") as caught:
            choice(variable=text)
        assert caught.value.param == "RAY_ADDRESS"


def test_equal_addresses_are_one_cluster_and_an_embedded_server_is_in_none() -> None:
    assert same_cluster("10.0.0.5:6379", "10.0.0.5:6379")
    assert not same_cluster("127.0.0.1:6379", "127.0.0.1:6380")
    assert not same_cluster("ray://127.0.0.1:10001", "127.0.0.1:10001")
    assert not same_cluster("127.0.0.1:6379", "")
