"""What a table can say beyond one address and one format: wires, regions, several keys, headers, bodies, proxies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers import registry
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.proxies import environment_proxy
from byzerllm.providers.registry import read_table
from byzerllm.spec import DeploymentSpec, parse_params

TABLE = """
type = "acme"
title = "Acme"
wire = "openai"
base_url = "https://{host}.acme.example/v1"
auth = "bearer"
verified = "2026-11-23"
pair = "secret"
default_model = "a-{host}"

[regions]
eu = "https://eu.acme.example/v1"

[wires.old]
wire = "openai"
base_url = "https://old.acme.example/v0"
auth = "header:x-key"
models_path = "/list"
models_complete = false
default_model = "o"
capabilities = ["tools"]

[wires.anthropic]

[params.api_key]
secret = true
help = "key"

[params.host]
help = "host"

[params.secret]
secret = true
help = "secret"

[params.number]
kind = "int"
body = "number"
help = "n"

[params.options]
kind = "json"
body = "options"
help = "o"

[params.old_url]
same_as = "base_url"
selects = "old"
help = "u"
"""


@pytest.fixture(autouse=True)
def _acme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "providers", lambda: {"acme": read_table(TABLE, "acme.toml")})


def parsed(environ: dict[str, str], **params: str) -> SaasOptions:
    named = {f"saas.{name}": value for name, value in params.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type="saas/acme", infer_params=named), environ)


def options(**params: str) -> SaasOptions:
    return parsed({}, **params)


def refused(**params: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        options(**params)
    return caught.value


# -- addresses and formats --------------------------------------------------------------------------------------------


def test_the_address_is_made_of_parameters() -> None:
    found = options(host="a")
    assert (found.base_url, found.own_url, found.model) == ("https://a.acme.example/v1",) * 2 + ("a-a",)
    assert refused().message == "saas.host is missing: saas/acme needs it (host)."
    given = options(base_url="http://h/v1", model="m")
    assert (given.base_url, given.own_url) == ("http://h/v1", "")


def test_a_region_is_chosen_by_name() -> None:
    assert options(region="eu", model="m").base_url == "https://eu.acme.example/v1"
    error = refused(region="us", model="m")
    assert (error.message, error.hint) == ("Unknown region 'saas.region=us'.", "Did you mean saas.region=eu?")


def test_a_format_has_what_it_says_and_otherwise_what_the_table_says() -> None:
    old = options(wire="old").provider
    assert (old.wire, old.base_url, old.auth) == ("openai", "https://old.acme.example/v0", "header:x-key")
    assert (old.models_path, old.models_complete, old.capabilities) == ("/list", False, frozenset(("tools",)))
    assert old.regions == {}, "an address of its own has regions of its own"
    other = options(wire="anthropic", host="a").provider
    assert (other.wire, other.auth, other.regions) == ("anthropic", "bearer", {"eu": "https://eu.acme.example/v1"})
    assert options(wire="openai", host="a").provider.wire == "openai"
    assert options(wire="old").model == "o"


def test_an_unknown_format_names_the_nearest() -> None:
    error = refused(wire="antropic", host="a")
    assert error.message == "Unknown format 'saas.wire=antropic'."
    assert error.hint == "Did you mean saas.wire=anthropic?"


def test_a_parameter_of_one_format_chooses_it_unless_another_is_named() -> None:
    assert options(old_url="http://h/v0", model="m").provider.auth == "header:x-key"
    assert options(old_url="http://h/v0", model="m", wire="openai").provider.auth == "bearer"


@pytest.mark.parametrize("path", ["/chat/completions", "/embeddings", "/chat/completions/", ""])
def test_the_calls_own_path_may_be_part_of_the_address(path: str) -> None:
    assert options(base_url="http://h/v1" + path, model="m").base_url == "http://h/v1"


def test_an_address_of_another_kind_is_refused() -> None:
    assert "is no http(s) address" in refused(base_url="wss://h/v1", model="m").message


# -- keys -------------------------------------------------------------------------------------------------------------


def test_one_key_is_one_endpoint() -> None:
    found = options(host="a", api_key="k")
    assert found.per_key() == [found]
    assert found.bearer == "k"
    assert options(host="a").bearer == ""


def test_each_of_several_keys_has_its_own_secret() -> None:
    found = options(host="a", api_key="k1, k2,", secret="s1,s2").per_key()
    assert [(o.api_key, o.params["secret"], o.bearer) for o in found] == [("k1", "s1", "k1:s1"), ("k2", "s2", "k2:s2")]
    assert [o.bearer for o in options(host="a", api_key="k1,k2,k3").per_key()] == ["k1", "k2", "k3"]


@pytest.mark.parametrize("typed", ["sk-good,", ",sk-good", " sk-good , ,"])
def test_a_comma_too_many_is_no_part_of_a_key(typed: str) -> None:
    [found] = options(host="a", api_key=typed, secret="s,").per_key()
    assert (found.api_key, found.bearer, found.secrets()) == ("sk-good", "sk-good:s", ("sk-good", "s"))


def test_keys_and_secrets_are_as_many() -> None:
    with pytest.raises(InvalidInput, match=r"saas\.api_key has 2 values and saas\.secret has 1") as caught:
        options(host="a", api_key="k1,k2", secret="s1").per_key()
    assert caught.value.param == "saas.secret"


# -- headers and bodies -----------------------------------------------------------------------------------------------


def test_headers_and_body_fields_that_the_owner_adds() -> None:
    found = options(
        host="a", extra_headers='{"X-A":"b"}', extra_body='{"top_k":4,"number":1,"o":{"p":[1]}}', number="2"
    )
    assert found.headers == {"X-A": "b"}
    assert {name: json.loads(text) for name, text in found.body.items()} == {"top_k": 4, "number": 2, "o": {"p": [1]}}
    assert json.loads(options(host="a", options='{"x": null}').body["options"]) == {"x": None}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("extra_headers", "X-A: b", "saas.extra_headers must be a JSON object"),
        ("extra_headers", '{"X-A": 1}', "saas.extra_headers must be a JSON object"),
        ("extra_headers", '{"Content-Length": "1"}', "the header 'Content-Length' cannot be set"),
        ("extra_headers", '{"X-A\\r\\nX-B": "1"}', "cannot be set"),
        ("extra_body", "[1]", "saas.extra_body must be a JSON object"),
        ("options", "{", "saas.options must be JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(name: str, value: str, words: str) -> None:
    assert words in refused(host="a", **{name: value}).message


def test_a_json_object_keeps_its_quotes_on_the_command_line() -> None:
    tokens = ['saas.extra_headers={"X-A": "b c"}', "saas.model='a b' saas.x=1", 'saas.y={"a"} saas.z=2']
    assert parse_params(tokens) == {
        "saas.extra_headers": '{"X-A": "b c"}',
        "saas.model": "a b",
        "saas.x": "1",
        "saas.y": "{a}",
        "saas.z": "2",
    }


# -- proxies ----------------------------------------------------------------------------------------------------------

PROXIES = {"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "q:2"}


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://h/v1", PROXIES, "http://p:1"),
        ("wss://h/v1", PROXIES, "http://p:1"),
        ("http://h/v1", PROXIES, "http://q:2"),
        ("https://h/v1", {}, ""),
        ("https://h/v1", {"HTTP_PROXY": "http://p:1"}, ""),
        ("https://h/v1", {"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:1"}, "http://low:1"),
        ("https://h.example/v1", {**PROXIES, "NO_PROXY": "other, .example"}, ""),
        ("https://h.example:8443/v1", {**PROXIES, "no_proxy": "h.example:8443"}, ""),
        ("https://h/v1", {**PROXIES, "NO_PROXY": "*"}, ""),
        ("https://h/v1", {**PROXIES, "NO_PROXY": "hh"}, "http://p:1"),
        ("http://localhost:1/v1", PROXIES, ""),
        ("http://127.8.0.1:1/v1", PROXIES, ""),
        ("http://[::1]:1/v1", PROXIES, ""),
        ("builtin:mock", PROXIES, ""),
    ],
)
def test_the_environments_proxy(url: str, environ: dict[str, str], proxy: str) -> None:
    assert environment_proxy(url, environ) == proxy


def test_a_proxy_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="HTTPS_PROXY names a proxy that cannot be used") as caught:
        environment_proxy("https://h/v1", {"HTTPS_PROXY": "socks5://user:secret@p:1"})
    assert "secret" not in str(caught.value)
    assert "NO_PROXY=h " in str(caught.value)


def test_the_parameter_goes_before_the_environment() -> None:
    assert parsed(PROXIES, host="a").proxy == "http://p:1"
    assert parsed(PROXIES, host="a", proxies="http://own:1").proxy == "http://own:1"
    assert parsed(PROXIES, host="a", proxies="").proxy == ""


# -- tables that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"bearer"', '"barer"', "Unknown auth 'barer'. Known: bearer,"),
        ('"header:x-key"', '"header:"', "Unknown auth 'header:'"),
        ("{host}.", "{hots}.", "base_url names the parameter 'hots'"),
        ('selects = "old"', 'selects = "new"', "selects 'new', which is none of the table's wires"),
        ('pair = "secret"', 'pair = "secrets"', "pair names the parameter 'secrets'"),
        ("[wires.anthropic]", "[wires.antropic]", "Unknown wire format 'antropic'"),
        ('wire = "openai"', 'wire = "soap"', "Unknown wire format 'soap'"),
        ('title = "Acme"', "title = 7", "Expected `str`, got `int` - at `$.title`"),
        ('title = "Acme"', "", "missing required field `title`"),
        ('title = "Acme"', 'title = "Acme"\ncolour = 1', "unknown field `colour`"),
        ('title = "Acme"', 'title = "Acme', "line 3"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_place(old: str, new: str, words: str) -> None:
    assert old in TABLE
    with pytest.raises(InvalidInput) as caught:
        read_table(TABLE.replace(old, new, 1), "/home/acme.toml")
    assert caught.value.message.startswith("The vendor table /home/acme.toml cannot be used: ")
    assert words in caught.value.message


@pytest.mark.parametrize("auth", ["bearer", "bearer;", "none", "header:X-Key", "query:key", "sigv4", "baidu", "spark"])
def test_every_kind_of_auth_is_known(auth: Any) -> None:
    assert read_table(TABLE.replace('"bearer"', f'"{auth}"', 1), "t").auth == auth


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    named = {"saas.api_key": "k", "saas.model": "m", "saas.base_url": "https://user:hidden-word@host/v1"}
    with pytest.raises(InvalidInput, match=r"https://\*{6}@host/v1") as refused:
        parse(DeploymentSpec(name="m", pretrained_model_type="saas/acme", infer_params=named), {})
    assert "hidden-word" not in str(refused.value)
