"""What a vendor's table may say. One table describes one ``saas/<type>``; everything in it is data."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire import check_wire
from byzerllm.wire.base import Task

SIGNERS = frozenset(
    ("sigv4", "baidu", "huawei", "spark")
)  # schemes that need more than the key; see control/signing.py

STREAM_OPTIONS = frozenset(("openai", "openai_lenient"))  # formats whose streams can be asked for their tokens

_AUTH = re.compile(r"bearer;?|none|(header|query):[A-Za-z][\w-]*")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Param(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``saas.*`` parameter: its kind and the one place it goes to (a request header, query or body field)."""

    kind: Literal["str", "int", "float", "bool", "json"] = "str"
    help: str = ""
    example: str | None = None
    secret: bool = False
    required: bool = False
    default: str | None = None
    header: str | None = None
    query: str | None = None
    body: str | None = None
    same_as: str | None = None  # an older name of another parameter
    ignored: bool = False  # accepted from older scripts, without effect
    selects: str | None = None  # whoever gives it means this one of the vendor's ``wires``

    @property
    def is_own(self) -> bool:
        """Whether it goes nowhere by itself: the address or the wire format decides what becomes of it."""
        return not (self.header or self.query or self.body)


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A further format of a vendor, or a further address; what it leaves out is as in the table itself. ``wire`` is
    the format where the variant's own name is none; ``params`` come on top of the table's."""

    title: str | None = None
    wire: str | None = None
    base_url: str | None = None
    regions: dict[str, str] | None = None
    auth: str | None = None
    pair: str | None = None
    default_model: str | None = None
    models_path: str | None = None
    models_complete: bool | None = None
    stream_usage: Literal["", "own", "any"] | None = None
    capabilities: frozenset[str] | None = None
    params: dict[str, Param] = {}


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One vendor.

    ``base_url`` may have parameters in braces, as in ``https://{region_name}.host``. ``auth`` is how the key travels:
    ``bearer``, ``bearer;``, ``header:NAME``, ``query:NAME``, ``none``, or one of ``SIGNERS``. ``pair`` names the
    parameter with the secret that belongs to ``api_key``; as a bearer token they are joined by a colon.
    ``models_path`` is the free call that checks key, address and model ("" where there is none); it may begin with
    ``/..``. ``models_complete`` says that a model which it does not list does not exist. ``stream_usage`` says where
    streams are asked for their tokens, since the vendor documents ``stream_options.include_usage``: at its ``own``
    addresses, or at ``any`` that a user gives; who does not document it may refuse it. ``tasks`` is what the API has
    where that is known to be less than the format has.
    """

    type: str
    title: str
    wire: str
    base_url: str
    auth: str
    verified: str  # the date on which these facts were checked
    aliases: tuple[str, ...] = ()
    pair: str | None = None
    regions: dict[str, str] = {}  # further base URLs by name
    wires: dict[str, Variant] = {}  # further formats by name
    default_model: str | None = None
    models_path: str = ""
    models_complete: bool = True
    stream_usage: Literal["", "own", "any"] = ""
    params: dict[str, Param] = {}
    capabilities: frozenset[str] = frozenset()
    models: dict[str, dict[str, Any]] = {}  # facts about models, by the beginning of their names
    tasks: frozenset[Task] = frozenset()

    def speaking(self, name: str) -> Provider:
        """The vendor in one of its ``wires``; under its own format's name, the vendor as it is."""
        if name == self.wire and name not in self.wires:
            return self
        chosen = self.wires[name]
        own: dict[str, Any] = {f: getattr(chosen, f) for f in chosen.__struct_fields__}
        given = {f: value for f, value in own.items() if value is not None}
        given["wire"] = chosen.wire or name
        given["params"] = self.params | chosen.params
        if chosen.base_url and chosen.regions is None:
            given["regions"] = {}
        return msgspec.structs.replace(self, **given)


def placeholders(text: str) -> list[str]:
    """The names of the parameters in braces."""
    return _PLACEHOLDER.findall(text)


def fill(text: str, values: dict[str, str]) -> str:
    """``text`` with the parameters' values; what has none stays as it is."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1]) or found[0], text)


def check_table(table: Provider) -> None:
    """Refuse what no deployment could work with.

    Raises:
        InvalidInput: what is wrong in the table.
    """
    for name in (table.wire, *table.wires):
        _check_endpoint(table.speaking(name))
    for model, facts in table.models.items():
        if "task" in facts and facts["task"] not in {task.value for task in Task}:
            raise InvalidInput(
                f"Unknown task {facts['task']!r} of {model!r}. Known: {', '.join(t.value for t in Task)}."
            )
        if facts.get("wire", table.wire) not in (table.wire, *table.wires):
            raise InvalidInput(
                f"The model {model!r} has the wire {facts['wire']!r}, which is none of the table's wires."
            )


def _check_endpoint(vendor: Provider) -> None:
    check_wire(vendor.wire)
    if vendor.auth not in SIGNERS and not _AUTH.fullmatch(vendor.auth):
        known = ", ".join(("bearer", "bearer;", "none", "header:NAME", "query:NAME", *sorted(SIGNERS)))
        raise InvalidInput(f"Unknown auth {vendor.auth!r}. Known: {known}.")
    for name in placeholders(vendor.base_url + "".join(vendor.regions.values())):
        if name not in vendor.params:
            raise InvalidInput(f"base_url names the parameter {name!r}, which the table does not have.")
    for name, param in vendor.params.items():
        if param.selects is not None and param.selects not in vendor.wires:
            raise InvalidInput(f"The parameter {name!r} selects {param.selects!r}, which is none of the table's wires.")
    if vendor.pair is not None and vendor.pair not in vendor.params:
        raise InvalidInput(f"pair names the parameter {vendor.pair!r}, which the table does not have.")


# What every vendor takes, whatever its format. Times are in seconds.
COMMON: dict[str, Param] = {
    "model": Param(help="the vendor's model id"),
    "base_url": Param(help="the API's address, up to and including its version, as in https://host/v1"),
    "timeout": Param(kind="float", help="longest silence of the upstream: until the first byte, and between two"),
    "connect_timeout": Param(kind="float", help="longest wait for a connection (10)"),
    "first_byte_timeout": Param(kind="float", help="longest wait for the first byte (600)"),
    "idle_timeout": Param(kind="float", help="longest silence inside an answer (300)"),
    "total_timeout": Param(kind="float", help="longest time for a whole answer (3600)"),
    "max_retries": Param(kind="int", help="further attempts before the first byte, on 408, 409, 429, 5xx (2)"),
    "proxies": Param(secret=True, help="http://[user:password@]host:port of an HTTP proxy; empty: none"),
    "local_address": Param(help="local address to connect from"),
    "ca_file": Param(help="PEM file with further certificate authorities"),
    "extra_headers": Param(secret=True, help='further request headers, as in {"X-Team": "a"}'),
    "extra_body": Param(help='fields for requests that do not set them, as in {"top_k": 4}'),
}
CHOICES = {
    "region": Param(help="which of the vendor's addresses"),
    "wire": Param(help="which of the vendor's formats"),
    "stream_usage": Param(kind="bool", help="ask streams for their tokens where the client does not, to count them"),
}


def known_params(vendor: Provider) -> dict[str, Param]:
    """Every parameter that the vendor takes, the common ones included."""
    offered = {"region": vendor.regions, "wire": vendor.wires, "stream_usage": vendor.wire in STREAM_OPTIONS}
    return COMMON | {name: param for name, param in CHOICES.items() if offered[name]} | vendor.params
