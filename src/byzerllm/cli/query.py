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

from byzerllm.cli.flags import MODEL, SEVERAL, SWITCH, Flag
from byzerllm.client.admin import AdminClient
from byzerllm.client.chat import stream_chat
from byzerllm.client.launch import connect
from byzerllm.client.media import draw, speak, transcribe
from byzerllm.errors import InvalidInput, UpstreamBroken

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (
    MODEL,
    Flag("query"),
    Flag("system"),
    Flag("image", SEVERAL),
    Flag("audio"),
    Flag("documents", SEVERAL),
    Flag("template", default="auto"),
    Flag("output_file"),
    Flag("no_stream", SWITCH, False),
)

_AUDIO = (".mp3", ".wav")
_SOUND_FORMATS = (".mp3", ".wav", ".opus", ".aac", ".flac", ".pcm")
_IMAGE_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
_IMAGE_STARTS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
_ENDINGS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".json"),
    "sound": (*_SOUND_FORMATS, ".ogg"),
    "image": tuple(_IMAGE_TYPES),
}
_WORDS = {"text": "text", "sound": "sound", "image": "an image"}
_ANSWERS = {"speech": ("sound",), "image": ("image",), "chat": ("text", "sound")}  # a chat may speak; else text
_DATA_URL = re.compile(r"data:[^,]*;base64,")
_FIRST_NUMBERS = 6
_MEANT_FOR = {
    "image": ("chat",),
    "system": ("chat", "speech"),
    "audio": ("chat", "transcription"),
    "documents": ("rerank",),
}
_CHAT_SOUNDS = {".wav": "wav", ".mp3": "mp3"}


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    if not (arguments.query or arguments.audio):
        raise InvalidInput(
            "--query is missing.",
            hint="Give --query TEXT, or --audio FILE to an instance that writes down what it hears.",
            param="query",
        )
    target = _output_file(arguments.output_file)
    if arguments.template != "auto":
        console.note("--template has no effect: the model's own template is used.")
    client = connect(settings)
    client.get("/admin/server")  # only our own server takes the token; /v1 would answer anyone, and be paid for it
    model = client.get(f"/v1/models/{quote(arguments.model, safe='')}")
    task = str(model.get("task"))
    if arguments.audio and not arguments.query and task != "transcription":
        raise InvalidInput(
            "--query is missing.",
            hint=f"Add --query TEXT, what {arguments.model} is to do with the sound.",
            param="query",
        )
    _check_ending(target, arguments.model, task)
    for flag, tasks in _MEANT_FOR.items():
        if getattr(arguments, flag) and task not in tasks:
            console.note(f"--{flag} has no effect: this is no {' or '.join(tasks)}.")
    answer = _ask(client, arguments, console, task, target)
    if target is not None:
        _write(target, answer)
        if task == "image" and isinstance(answer, bytes):
            _tell_other_kind(target, answer, console)
        console.note(f"Written to {target}.")
    return 0


def _ask(
    client: AdminClient, arguments: argparse.Namespace, console: Console, task: str, target: Path | None
) -> str | bytes:
    """The answer, which was shown where it goes to no file."""
    if task in ("speech", "image"):
        return _file(client, arguments, console, task, target)
    if task == "transcription":
        return _transcribe(client, arguments, console, shown=target is None)
    if task == "embedding":
        return _embed(client, arguments, console, whole=target is not None)
    if task == "rerank":
        return _rank(client, arguments, console, whole=target is not None)
    if task == "completion":
        return _complete(client, arguments, console, shown=target is None)
    return _chat(client, arguments, console, shown=target is None)


def _file(
    client: AdminClient, arguments: argparse.Namespace, console: Console, task: str, target: Path | None
) -> bytes:
    """Speech or an image: for a file, or for whatever stdout leads to."""
    if target is None and console.out_is_terminal:
        raise InvalidInput(
            f"{arguments.model} answers with {_WORDS[_ANSWERS[task][0]]}.",
            hint=f"Add --output_file answer.{'mp3' if task == 'speech' else 'png'}",
            param="output_file",
        )
    body = {"model": arguments.model}
    if task == "image":
        content = draw(client, {**body, "prompt": arguments.query})
    else:
        suffix = target.suffix.lower() if target is not None else ""
        body |= {"response_format": suffix[1:]} if suffix in _SOUND_FORMATS else {}
        body |= {"instructions": arguments.system} if arguments.system else {}
        content = speak(client, {**body, "input": arguments.query})
    if target is None:
        console.raw(content)
    return content


def _transcribe(client: AdminClient, arguments: argparse.Namespace, console: Console, *, shown: bool) -> str:
    if not arguments.audio:
        raise InvalidInput(
            f"{arguments.model} writes down what is said in a sound file.", hint="Add --audio FILE", param="audio"
        )
    try:
        text = transcribe(client, arguments.model, Path(arguments.audio).expanduser(), arguments.query)
    except OSError as error:
        raise InvalidInput(f"--audio {arguments.audio}: {error.strerror}.", param="audio") from None
    if shown:
        console.data(text)
    return text


def _chat(client: AdminClient, arguments: argparse.Namespace, console: Console, *, shown: bool) -> str:
    messages: list[dict[str, Any]] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages.append({"role": "user", "content": _content(arguments)})
    body: dict[str, Any] = {"model": arguments.model, "messages": messages}
    if not arguments.no_stream:
        return _streamed(client, body, "/v1/chat/completions", console, shown=shown)
    answer = client.call("POST", "/v1/chat/completions", body, timeout=None)
    text = str(answer["choices"][0]["message"].get("content") or "")
    if shown:
        console.data(text)
    return text


def _complete(client: AdminClient, arguments: argparse.Namespace, console: Console, *, shown: bool) -> str:
    """What follows the text, from a model that knows no chats."""
    body = {"model": arguments.model, "prompt": arguments.query}
    return _streamed(client, body, "/v1/completions", console, shown=shown)


def _streamed(client: AdminClient, body: dict[str, Any], path: str, console: Console, *, shown: bool) -> str:
    parts: list[str] = []
    try:
        with closing(stream_chat(client, body, path)) as pieces:
            for piece in pieces:
                console.dim(piece.reasoning)
                parts.append(piece.text)
                if shown:
                    console.data(piece.text, end="")
    finally:
        if shown and parts:
            console.data("")  # whatever happens, the next line is its own
    return "".join(parts)


def _content(arguments: argparse.Namespace) -> str | list[dict[str, Any]]:
    """The question, with the images and the sound before it where there are some."""
    parts: list[dict[str, Any]] = []
    for name in arguments.image:
        kind, data = _encoded("image", name, _IMAGE_TYPES)
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}})
    if arguments.audio:
        kind, data = _encoded("audio", arguments.audio, _CHAT_SOUNDS)
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": kind}})
    return [*parts, {"type": "text", "text": arguments.query}] if parts else str(arguments.query)


def _encoded(flag: str, name: str, kinds: dict[str, str]) -> tuple[str, str]:
    """What kind of file it is, and its content in base64."""
    path = Path(name).expanduser()
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InvalidInput(f"--{flag} {name}: its name must end with {', '.join(kinds)}.", param=flag)
    try:
        return kind, base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InvalidInput(f"--{flag} {name}: {error.strerror}.", param=flag) from None


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


def _rank(client: AdminClient, arguments: argparse.Namespace, console: Console, *, whole: bool) -> str:
    if not arguments.documents:
        raise InvalidInput(
            f"{arguments.model} puts texts into the order of their relevance.",
            hint="Add --documents TEXT TEXT ...",
            param="documents",
        )
    body = {"model": arguments.model, "query": arguments.query, "documents": arguments.documents}
    answer = client.call("POST", "/v1/rerank", body, timeout=None)
    if whole:
        return json.dumps(answer)
    ranks = [(rank["relevance_score"], arguments.documents[rank["index"]]) for rank in answer["results"]]
    if console.out_is_terminal:
        text = "\n".join(f"{place}. {score:.4g}  {document}" for place, (score, document) in enumerate(ranks, 1))
    else:
        text = json.dumps(answer)
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


def _check_ending(path: Path | None, model: str, task: str) -> None:
    """Refuse a name that says that the file holds something else than what the instance answers with."""
    ending = path.suffix.lower() if path is not None else ""
    answers = _ANSWERS.get(task, ("text",))
    fitting = [e for kind in answers for e in _ENDINGS[kind]]
    if ending not in fitting and any(ending in endings for endings in _ENDINGS.values()):
        raise InvalidInput(
            f"--output_file {path}: {model} answers with {_WORDS[answers[0]]}, which is no {ending} file.",
            hint=f"Give it a name that ends with {fitting[0]}.",
            param="output_file",
        )


def _write(path: Path, answer: str | bytes) -> None:
    try:
        if isinstance(answer, bytes):
            path.write_bytes(answer)
        elif path.suffix.lower() in _AUDIO:
            path.write_bytes(_audio(answer))
        else:
            path.write_text(answer, "utf-8")
    except OSError as error:
        raise InvalidInput(f"--output_file {path}: {error.strerror}.", param="output_file") from None


def _tell_other_kind(path: Path, image: bytes, console: Console) -> None:
    """An image is kept as it came: say what it is where the file's name says something else."""
    kind = next((kind for start, kind in _IMAGE_STARTS.items() if image.startswith(start)), None)
    if kind is not None and kind != _IMAGE_TYPES.get(path.suffix.lower(), kind):
        console.note(f"The image is a {kind}.")


def _audio(text: str) -> bytes:
    try:
        return base64.b64decode(_DATA_URL.sub("", text.strip(), count=1), validate=True)
    except (binascii.Error, ValueError):
        raise UpstreamBroken(
            "The answer is no audio: it is not in base64.",
            hint="Ask a model that speaks, or give --output_file another ending than .mp3 or .wav.",
        ) from None
