"""The items of the older wire as requests to the server. Pure.

An item is one JSON object; which of its keys are there says what it asks for. Keys that nobody knows are ignored, as
they always were: programs send keys of their own.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import groupby
from typing import Any

from byzerllm.errors import InvalidInput
from byzerllm.gateway.legacy.content import content, image_part
from byzerllm.wire.base import Outgoing, Task
from byzerllm.wire.openai import PATHS

# How many texts go up at once. The older clients set no limit, and no vendor takes fewer than this.
EMBEDDING_BATCH = 10

_JSON = "application/json"
_PREFIXES = ("gen.", "generation.")
_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "prefix")
_ABOUT_THE_CALL = ("stream", "request_id", "abort", "response_prefix", "incremental_output")
_LIMITS: dict[str, tuple[str, type[int] | type[float]]] = {
    "max_length": ("max_tokens", int),
    "top_p": ("top_p", float),
    "temperature": ("temperature", float),
}
_OURS = ("model", "messages", "stream", "stream_options")

Item = dict[str, Any]


class Kind(Enum):
    """What an item asks for; the order is that of the keys, the first one that is set counts."""

    TOKENIZER = "tokenizer"
    TEMPLATE = "apply_chat_template"
    RERANK = "embed_rerank"
    EMBEDDING = "embedding"
    META = "meta"
    ABORT = "gen.abort"
    CHAT = "chat"


def decode(text: str) -> Item:
    """One item.

    Raises:
        InvalidInput: no JSON object with an instruction.
    """
    try:
        item = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The request item is no JSON: {error}.") from None
    if not isinstance(item, dict) or "instruction" not in item:
        raise InvalidInput("A request item must be a JSON object with an instruction.", param="instruction")
    return item


def kind(item: Item) -> Kind:
    if "abort" in options(item):
        return Kind.ABORT
    return next((kind for kind in Kind if item.get(kind.value)), Kind.CHAT)


def options(item: Item) -> dict[str, Any]:
    """What stands in the item under ``gen.`` or ``generation.``, without that; the longer one goes before."""
    return {
        name.removeprefix(prefix): value
        for prefix in _PREFIXES
        for name, value in item.items()
        if name.startswith(prefix)
    }


def wants_stream(item: Item) -> bool:
    return options(item).get("stream") in (True, "true", "True")


def stream_id(item: Item) -> str:
    """The id under which a stream is read: the caller's own, else a new one."""
    given = options(item).get("request_id")
    return given if isinstance(given, str) and given else secrets.token_hex(16)


def groups(items: Sequence[Item]) -> list[list[Item]]:
    """The items in their order, with texts to embed together where one request can hold them."""
    found: list[list[Item]] = []
    for (what, _), same in groupby(items, key=_alike):
        members = list(same)
        size = EMBEDDING_BATCH if what is Kind.EMBEDDING else 1
        found += [members[start : start + size] for start in range(0, len(members), size)]
    return found


def _alike(item: Item) -> tuple[Kind, str]:
    return kind(item), json.dumps(options(item), sort_keys=True)


def chat(item: Item, model: str) -> Outgoing:
    """The chat, or the start of its stream.

    Raises:
        InvalidInput: a value that no request can hold.
    """
    body: dict[str, Any] = {"model": model, "messages": _messages(item), **_limits(item), **_fields(item)}
    if wants_stream(item):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _post(Task.CHAT, body)


def embedding(items: Sequence[Item], model: str) -> Outgoing:
    """One request for all texts. (Lengths and temperatures are in such an item too, and mean nothing.)"""
    texts = [str(item["instruction"]) for item in items]
    return _post(Task.EMBEDDING, {**options(items[0]), "model": model, "input": texts})


def pairs(item: Item) -> list[tuple[str, str]]:
    """The pairs of query and document to rank, one or many.

    Raises:
        InvalidInput: something else.
    """
    given = [item["instruction"]] if is_single_pair(item) else item["instruction"]
    if not isinstance(given, list) or not all(isinstance(p, list) and len(p) == 2 for p in given):
        raise InvalidInput("A reranking needs pairs of query and document.", param="instruction")
    return [(str(query), str(document)) for query, document in given]


def is_single_pair(item: Item) -> bool:
    given = item["instruction"]
    return isinstance(given, list) and bool(given) and isinstance(given[0], str)


def reranks(item: Item, model: str) -> list[tuple[str, list[str], Outgoing]]:
    """A request for each query, with the query and its documents."""
    by_query: dict[str, list[str]] = {}
    for query, document in pairs(item):
        by_query.setdefault(query, []).append(document)
    return [
        (query, documents, _post(Task.RERANK, {**options(item), **_rerank(model, query, documents)}))
        for query, documents in by_query.items()
    ]


def _rerank(model: str, query: str, documents: list[str]) -> dict[str, Any]:
    return {"model": model, "query": query, "documents": documents}


def media(form: Mapping[str, Any], task: Task, model: str) -> Outgoing:
    """A request for speech, an image or a transcription from the fields that the older clients write as content.

    Raises:
        InvalidInput: it has not what the task needs.
    """
    needed = "audio" if task is Task.TRANSCRIPTION else "input"
    if not isinstance(form.get(needed), str):
        raise InvalidInput(f"A request for {task.value} needs {needed!r}.", param=needed)
    if task is Task.TRANSCRIPTION:
        return _transcription(form, model)
    fields = {name: value for name, value in form.items() if name not in ("chunk_size", "model", "stream")}
    if task is Task.IMAGE:  # its answer is to be the image itself
        fields = {"response_format": "b64_json", **fields, "prompt": fields["input"]}
        del fields["input"]
    return _post(task, {**fields, "model": model})


def _transcription(form: Mapping[str, Any], model: str) -> Outgoing:
    head, _, encoded = form["audio"].rpartition(",")
    try:
        sound = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("'audio' must be a data: URL or base64.", param="audio") from None
    ending = head.removeprefix("data:audio/").partition(";")[0] or str(form.get("type", "wav"))
    boundary = secrets.token_hex(16)
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    texts = {"model": model, **{n: v for n, v in form.items() if n not in ("audio", "type", "model")}}
    head = "".join(f'{part}{name}"\r\n\r\n{value}\r\n' for name, value in texts.items())
    head += f'{part}file"; filename="audio.{ending}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    body = b"".join((head.encode(), sound, f"\r\n--{boundary}--\r\n".encode()))
    path = f"/v1{PATHS[Task.TRANSCRIPTION]}"
    return Outgoing(path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def _messages(item: Item) -> list[dict[str, Any]]:
    """The history and the instruction. The older client takes the role off the last message: after a message of the
    user it is the beginning of the answer, which is how its ``assistant_prefix`` works."""
    history = item.get("history") or []
    if not isinstance(history, list) or not all(isinstance(message, dict) for message in history):
        raise InvalidInput("'history' must be a list of messages.", param="history")
    prefix = options(item).get("response_prefix") in (True, "true", "True")
    continued = prefix or bool(history and history[-1].get("role") == "user")
    last: dict[str, Any] = {"role": "assistant" if continued else "user", "content": content(item["instruction"])}
    if prefix:
        last["prefix"] = True
    if item.get("image"):
        last["content"] = _with_image(str(item["image"]), last["content"])
    return [*map(_message, history), last]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in message.items() if name in _MESSAGE_FIELDS}
    return {**known, "content": content(message.get("content"))}


def _with_image(image: str, around: Any) -> list[dict[str, Any]]:
    part = image_part(image)
    if part is None:
        raise InvalidInput("'image' must be base64, a data: URL or an address.", param="image")
    return [part, *(around if isinstance(around, list) else [{"type": "text", "text": around}])]


def _limits(item: Item) -> dict[str, Any]:
    """What the older clients set at the item's top level, where they did."""
    found: dict[str, Any] = {}
    for name, (field, convert) in _LIMITS.items():
        if item.get(name) is not None:
            found[field] = _number(name, item[name], convert)
    stop = item.get("stopping_sequences")
    if stop:
        found["stop"] = stop.split(",") if isinstance(stop, str) else stop
    return found


def _number(name: str, value: Any, convert: type[int] | type[float]) -> int | float:
    try:
        return convert(value)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name}={value!r} must be a number.", param=name) from None


def _fields(item: Item) -> dict[str, Any]:
    """What goes into the body as the caller wrote it."""
    given = options(item)
    if given.pop("model", None):
        raise InvalidInput(
            "gen.model cannot be set: an instance has the one model that it was deployed with.",
            hint="Deploy the other model under a name of its own.",
            param="gen.model",
        )
    fields = {name: value for name, value in given.items() if name not in _ABOUT_THE_CALL and value is not None}
    if isinstance(fields.get("stop"), str):
        fields["stop"] = _stop(fields["stop"])
    extra = item.get("extra_request_params") or {}
    if not isinstance(extra, dict):
        raise InvalidInput("'extra_request_params' must be an object.", param="extra_request_params")
    return {**fields, **{name: value for name, value in extra.items() if name not in _OURS}}


def _stop(text: str) -> Any:
    """One stop text, or a list of them as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, list) else text


def _post(task: Task, body: dict[str, Any]) -> Outgoing:
    return Outgoing(f"/v1{PATHS[task]}", json.dumps(body, ensure_ascii=False).encode(), {"Content-Type": _JSON})
