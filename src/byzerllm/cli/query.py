"""``byzerllm query``: one question to an instance; the answer appears as it is made."""

from __future__ import annotations

import base64
import binascii
import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from byzerllm.cli.flags import MODEL, SWITCH, Flag
from byzerllm.client.admin import AdminClient
from byzerllm.client.chat import stream_chat
from byzerllm.errors import InvalidInput, UpstreamBroken

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (
    MODEL,
    Flag("query", required=True),
    Flag("system"),
    Flag("template", default="auto"),
    Flag("output_file"),
    Flag("no_stream", SWITCH, False),
)

_AUDIO = (".mp3", ".wav")
_DATA_URL = re.compile(r"data:[^,]*;base64,")
_FIRST_NUMBERS = 6


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    target = _output_file(arguments.output_file)
    if arguments.template != "auto":
        console.note("--template has no effect: the model's own template is used.")
    client = AdminClient.connect(settings)
    model = client.get(f"/v1/models/{quote(arguments.model, safe='')}")
    if model.get("task") == "embedding":
        text = _embed(client, arguments, console, whole=target is not None)
    else:
        text = _chat(client, arguments, console, shown=target is None)
    if target is not None:
        _write(target, text)
        console.note(f"Written to {target}.")
    return 0


def _chat(client: AdminClient, arguments: argparse.Namespace, console: Console, *, shown: bool) -> str:
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages.append({"role": "user", "content": arguments.query})
    body: dict[str, Any] = {"model": arguments.model, "messages": messages}
    if arguments.no_stream:
        answer = client.call("POST", "/v1/chat/completions", body, timeout=None)
        text = str(answer["choices"][0]["message"].get("content") or "")
        if shown:
            console.data(text)
        return text
    parts: list[str] = []
    try:
        with closing(stream_chat(client, body)) as pieces:
            for piece in pieces:
                console.dim(piece.reasoning)
                parts.append(piece.text)
                if shown:
                    console.data(piece.text, end="")
    finally:
        if shown and parts:
            console.data("")  # whatever happens, the next line is its own
    return "".join(parts)


def _embed(client: AdminClient, arguments: argparse.Namespace, console: Console, *, whole: bool) -> str:
    body = {"model": arguments.model, "input": arguments.query}
    answer = client.call("POST", "/v1/embeddings", body, timeout=None)
    text = json.dumps(answer)
    if whole:
        return text
    if console.out_is_terminal:
        vector = answer["data"][0]["embedding"]
        first = ", ".join(f"{number:.6g}" for number in vector[:_FIRST_NUMBERS])
        text = f"{len(vector)} numbers: {first}, ..."
    console.data(text)
    return text


def _output_file(name: str) -> Path | None:
    """Where the answer goes, checked before a vendor is paid for it."""
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InvalidInput(f"--output_file {name}: {reason}.", param="output_file")
    return path


def _write(path: Path, text: str) -> None:
    try:
        if path.suffix.lower() in _AUDIO:
            path.write_bytes(_audio(text))
        else:
            path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidInput(f"--output_file {path}: {error.strerror}.", param="output_file") from None


def _audio(text: str) -> bytes:
    try:
        return base64.b64decode(_DATA_URL.sub("", text.strip(), count=1), validate=True)
    except (binascii.Error, ValueError):
        raise UpstreamBroken(
            "The answer is no audio: it is not in base64.",
            hint="Ask a model that speaks, or give --output_file another ending than .mp3 or .wav.",
        ) from None
