"""Writes docs/vendors.md from the vendors' tables. With ``--check`` it only says whether the page is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from byzerllm.providers.registry import providers
from byzerllm.providers.schema import COMMON, SIGNERS, STREAM_OPTIONS, Param, Provider, known_params, placeholders
from byzerllm.wire import MEDIA, WIRES, media_format
from byzerllm.wire.base import Vendor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vendors.md"
# Types whose default model needs no change: a voice, the deployment's own name, or a name that nobody reads.
_GOOD_DEFAULTS = frozenset(("azure", "azure_openai", "mock", "pangu"))
HEAD = """# Vendors

Every `--pretrained_model_type saas/TYPE`. This page is written by `scripts/vendor_docs.py` from the tables in
`src/byzerllm/providers/`, one file a type, each of which begins with where its facts are from.

* Every type also takes the [common parameters](configuration.md#parameters-of-saas-instances): `saas.model`,
  `saas.base_url`, timeouts, proxies, further headers and body fields. A value may be `env:NAME` or `file:PATH`.
* `saas.api_key` may hold several keys with commas between: worker i uses key i modulo their number. A key that the
  vendor refuses (401, 402, 403) or limits (429) rests, and its requests go on with another.
* A format marked *as it is* passes what the client sends and what the vendor answers through unchanged. The others are
  translated: the capabilities listed are what they have beyond text, streams and sampling; the rest is refused.
* `stream_usage` among the capabilities: so that tokens can be counted, streams are asked for them
  (`stream_options.include_usage`) also where the client does not, and then the answer is kept from it. At an address
  that is given with `saas.base_url` this is so only where it says "any address". `saas.stream_usage=true` or `false`
  decides otherwise, for every vendor in the formats `openai` and `openai_lenient`.
* Most default models are the older tool's, so that its scripts go on working. They are old by now, and some are gone:
  name the model that you want.
* `saas.wire=NAME` chooses another format of a vendor, `saas.region=NAME` another address.

## A vendor of your own

A file `$BYZERLLM_HOME/providers/TYPE.toml` adds a type, without a restart of the server; one with a built-in type's
name goes before that. It has the same fields as the built-in ones, for example:

```toml
type = "acme"
title = "Acme AI"
wire = "openai"                       # the format: openai, anthropic, gemini, ...
base_url = "https://api.acme.example/v1"
auth = "bearer"                       # or header:NAME, query:NAME, none
verified = "2026-11-23"
models_path = "/models"               # lists the models: deploy checks key and model with it

[params.api_key]
secret = true
required = true
help = "the key from the console"
```
"""


def render(vendors: Iterable[Provider]) -> str:
    """The whole page."""
    return HEAD + "".join(f"\n{_section(v)}" for v in sorted(vendors, key=lambda v: v.type))


def _section(vendor: Provider) -> str:
    names = ", ".join(f"`saas/{name}`" for name in vendor.aliases)
    formats = [(name, vendor.speaking(name)) for name in dict.fromkeys((vendor.wire, *vendor.wires))]
    lines = [
        f"## saas/{vendor.type}",
        "",
        f"{vendor.title}{f', also {names}' if names else ''}. Checked {vendor.verified}.",
        "",
        "| `saas.wire` | format | address | key | default model | checked at deploy | capabilities |",
        "|---|---|---|---|---|---|---|",
        *(_format_row(name, spoken, first=number == 0) for number, (name, spoken) in enumerate(formats)),
        "",
    ]
    regions = {name: url for _, spoken in formats for name, url in spoken.regions.items()}
    if regions:
        lines += ["| `saas.region` | address |", "|---|---|"]
        lines += [f"| `{name}` | {_addresses(name, [s for _, s in formats])} |" for name in regions]
        lines += [""]
    lines += ["| parameter | default | meaning |", "|---|---|---|", *_param_rows(dict(formats)), ""]
    lines += _without_model(vendor)
    return "\n".join([*lines, "```bash", _example(vendor), "```", ""])


def _without_model(vendor: Provider) -> list[str]:
    """A word on a default model that makes the instance one of another format than the vendor's first."""
    wire = Vendor(vendor.default_model or "", models=vendor.models).fact("wire")
    if wire not in MEDIA:
        return []
    tasks = " or ".join(sorted(task.value for task in media_format(wire).tasks))
    return [f"Without `saas.model` the instance's task is {tasks}, with `{vendor.default_model}` (`{wire}`).", ""]


def _format_row(name: str, vendor: Provider, *, first: bool) -> str:
    kind = "as it is" if vendor.wire in WIRES else "speech or images" if vendor.wire in MEDIA else "translated"
    cells = (
        f"`{name}`{' (default)' if first else ''}",
        f"{vendor.wire}, {kind}",
        f"`{vendor.base_url}`",
        f"`{vendor.auth}`",
        f"`{vendor.default_model}`" if vendor.default_model else "",
        _checked(vendor),
        ", ".join(sorted((*vendor.capabilities, *_stream_usage(vendor)))),
    )
    return f"| {' | '.join(cells)} |"


def _checked(vendor: Provider) -> str:
    if not vendor.models_path:
        return "nothing: it has no free call"
    return "address, key, model" if vendor.models_complete else "address, key"


def _stream_usage(vendor: Provider) -> Iterable[str]:
    if vendor.stream_usage and vendor.wire in STREAM_OPTIONS:
        yield "stream_usage" if vendor.stream_usage == "own" else "stream_usage (any address)"


def _addresses(region: str, formats: Iterable[Provider]) -> str:
    urls = dict.fromkeys(f.regions[region] for f in formats if region in f.regions)
    return ", ".join(f"`{url}`" for url in urls)


def _param_rows(formats: Mapping[str, Provider]) -> list[str]:
    params: dict[str, Param] = {}
    for spoken in formats.values():
        params = spoken.params | params
    return [f"| `saas.{name}` | {_default(name, p, formats)} | {_meaning(p)} |" for name, p in sorted(params.items())]


def _default(name: str, param: Param, formats: Mapping[str, Provider]) -> str:
    """Its default, or the formats that cannot do without it where it is not all of them."""
    needing = [wire for wire, spoken in formats.items() if name in spoken.params and spoken.params[name].required]
    if needing and len(needing) < len(formats):
        return f"required for {', '.join(f'`{wire}`' for wire in needing)}"
    return "required" if needing else f"`{param.default}`" if param.default else ""


def _meaning(param: Param) -> str:
    example = f", as in `{param.example}`" if param.example else ""
    return f"{param.help}{example}{' (secret)' if param.secret else ''}"


def _example(vendor: Provider) -> str:
    """A command that deploys it with the least it needs."""
    params = known_params(vendor)
    values: dict[str, str] = {}
    if "api_key" in params and (params["api_key"].required or vendor.auth in SIGNERS):
        values["api_key"] = f"env:{vendor.type.upper()}_API_KEY"
    needed = [n for n, p in params.items() if p.required] + placeholders(vendor.base_url)
    values |= {
        n: params[n].example or n.upper() for n in dict.fromkeys(needed) if n != "api_key" and not params[n].default
    }
    if vendor.type not in _GOOD_DEFAULTS and params["model"] == COMMON["model"]:
        values["model"] = "MODEL"
    command = f"byzerllm deploy --model my_{vendor.type} --pretrained_model_type saas/{vendor.type}"
    given = " ".join(f"saas.{name}={value}" for name, value in values.items())
    return f"{command} \\\n  --infer_params {given}" if given else command


def main() -> int:
    """Write the page, or compare it; returns the exit code."""
    text = render({v.type: v for v in providers().values()}.values())
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text("utf-8") == text
        print(f"{PAGE.name} is {'up to date' if same else 'not up to date: run python -m scripts.vendor_docs'}")
        return 0 if same else 1
    PAGE.write_text(text, "utf-8")
    print(f"{PAGE.name} is written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
