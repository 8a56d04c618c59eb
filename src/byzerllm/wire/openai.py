"""OpenAI's format, for every task: the one that clients speak, so its bytes pass through.

Facts: platform.openai.com/docs/api-reference, and the error shapes of the vendors that are compatible with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import ByzerError, InternalError, UpstreamError
from byzerllm.wire.base import BAD_JSON, Adapter, Request, StreamEnd, Task, Usage, with_model
from byzerllm.wire.in_band import in_band_status

PATHS = {
    Task.CHAT: "/chat/completions",
    Task.COMPLETION: "/completions",
    Task.EMBEDDING: "/embeddings",
    Task.RERANK: "/rerank",  # not OpenAI's: what Cohere, Jina and the servers that follow them have in common
    Task.SCORE: "/score",  # vLLM's
    Task.RESPONSES: "/responses",
    Task.SPEECH: "/audio/speech",
    Task.TRANSCRIPTION: "/audio/transcriptions",
    Task.IMAGE: "/images/generations",
}
# As clients call them. The last two are vLLM's, and not below a version.
SURFACES = {task: f"/v1{path}" for task, path in PATHS.items()} | {
    Task.TOKENIZE: "/tokenize",
    Task.DETOKENIZE: "/detokenize",
}
DONE = b"data: [DONE]\n\n"

_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_INPUT = re.compile(rb'"input_tokens"\s*:\s*(\d+)')  # of responses, images, transcriptions and rerankings
_OUTPUT = re.compile(rb'"output_tokens"\s*:\s*(\d+)')
_TIMINGS = re.compile(rb'"cache_n"\s*:\s*(\d+)\s*,\s*"prompt_n"\s*:\s*(\d+).*"predicted_n"\s*:\s*(\d+)', re.DOTALL)
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"[^"]')  # some vendors send "" until the end
_ERROR_EVENT = re.compile(
    rb'data: ?\{\s*(?:"error"\s*:\s*[{"]|"code"\s*:\s*[1-9])|"base_resp"\s*:\s*\{\s*"status_code"\s*:\s*[1-9]'
)
_ERROR_WORDS = (b'"error"', b'"code"', b'"base_resp"')  # spares most streams the search
_FAILED = re.compile(rb'"type"\s*:\s*"(?:error|response\.failed)"')
_RESPONSE_END = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete)"')
_REQUEST_IDS = ("request_id", "trace_id", "sid")
_MAX_MESSAGE = 4000


class OpenAIWire:
    """Pass-through: only the model's name changes on the way up, nothing on the way down."""

    name = "openai"
    adapters: Mapping[Task, Adapter] = {}

    def path(self, task: Task) -> str | None:
        return PATHS.get(task)

    def body(self, request: Request, model: str, defaults: Mapping[str, msgspec.Raw]) -> bytes:
        effort = defaults.get("reasoning_effort")
        if request.task is Task.RESPONSES and effort is not None:  # it has another name for it
            others = {name: value for name, value in defaults.items() if name != "reasoning_effort"}
            defaults = {"reasoning": msgspec.Raw(b'{"effort":%b}' % bytes(effort)), **others}
        return with_model(request, model, defaults)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)

    def failure(self, answer: bytes) -> UpstreamError | None:
        if answer.startswith(b"data:"):  # a stream: its first event
            answer, end, _ = answer[5:].partition(b"\n")
            if not end:
                return None
        return failure(answer)

    def usage(self, tail: bytes) -> Usage | None:
        prompt = _last(_PROMPT, tail)
        if prompt is None:
            timings = _TIMINGS.search(tail)  # llama.cpp ends every stream with them
            if timings:
                return Usage(int(timings[1]) + int(timings[2]), int(timings[3]))
            read = _last(_INPUT, tail)
            return Usage(read, _last(_OUTPUT, tail) or 0) if read is not None else None
        return Usage(prompt, _last(_COMPLETION, tail) or 0)

    def stream_end(self, tail: bytes, task: Task) -> StreamEnd:
        if any(word in tail for word in _ERROR_WORDS) and _ERROR_EVENT.search(tail):
            return StreamEnd.ERROR
        if task not in (Task.CHAT, Task.COMPLETION):
            return _typed_end(tail, task)
        if tail.rstrip().endswith(b"[DONE]") or _FINISHED.search(tail):
            return StreamEnd.COMPLETE
        return StreamEnd.TRUNCATED


def _typed_end(tail: bytes, task: Task) -> StreamEnd:
    """The end of a stream whose events have types and no common last one; the last may be longer than the tail."""
    lines = tail.replace(b"\r\n", b"\n")
    if not lines.endswith(b"\n\n"):
        return StreamEnd.TRUNCATED
    before, _, last = lines.rstrip().rpartition(b"\n\n")
    if _FAILED.search(last):
        return StreamEnd.ERROR
    known = task is Task.RESPONSES and bool(before)
    return StreamEnd.TRUNCATED if known and not _RESPONSE_END.search(last) else StreamEnd.COMPLETE


def _last(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    found = pattern.findall(tail)
    return int(found[-1]) if found else None


def failure(answer: bytes) -> UpstreamError | None:
    """The error that the JSON of an answer of status 200 reports, with the status that it should have had, or None."""
    status = in_band_status(answer)
    return None if status is None else parse_error(status, {}, answer)


def parse_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The vendor's own words from any of the error bodies that OpenAI-compatible servers send.

    ``headers`` has lower-case names. ``retry_after`` is taken from ``retry-after-ms`` or ``retry-after`` (seconds).
    """
    fields = _error_fields(body)
    message = str(fields.get("message") or "").strip() or _plain_text(body)
    code = fields.get("code")
    return UpstreamError(
        message[:_MAX_MESSAGE] or f"the upstream answered with status {status} and no message",
        status=status,
        vendor_code=code if isinstance(code, str | int) else None,
        vendor_type=_text(fields.get("type")),
        param=_text(fields.get("param")),
        request_id=headers.get("x-request-id") or headers.get("request-id") or _request_id(fields),
        retry_after=retry_after(headers),
        body=body,
    )


def _request_id(fields: Mapping[str, Any]) -> str | None:
    return next((fields[name] for name in _REQUEST_IDS if isinstance(fields.get(name), str)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _error_fields(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except BAD_JSON:
        return {"message": _plain_text(body)}
    if isinstance(value, list) and len(value) == 1:  # Gemini's compatible endpoint
        value = value[0]
    if isinstance(value, str):  # a bare JSON string
        return {"message": value}
    if not isinstance(value, dict):
        return {"message": _plain_text(body)}
    return _fields_of(value) or {"message": _plain_text(body)}


def _fields_of(value: dict[str, Any]) -> dict[str, Any] | None:
    """What an object says of an error, under OpenAI's names; None when it is of no known shape."""
    inner = value.get("error")
    if isinstance(inner, dict):
        return {"request_id": value.get("request_id"), **inner}
    if isinstance(inner, str):
        return {"message": value.get("error_description") or inner, "code": inner}
    base = value.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):  # MiniMax
        return {**value, "message": base.get("status_msg"), "code": base["status_code"]}
    if value.get("error_msg"):  # Baidu, Huawei
        return {**value, "message": value["error_msg"], "code": value.get("error_code")}
    for name in ("Message", "detail"):  # AWS, from what stands before its services; FastAPI
        if isinstance(value.get(name), str):
            return {"message": value[name]}
    return value if "message" in value else None


def _plain_text(body: bytes) -> str:
    text = body[:_MAX_MESSAGE].decode("utf-8", "replace")
    if "<html" in text.lower():
        text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(text.split())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from the headers that say so; None when they do not, or say it as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < 86_400:
            return seconds
    return None


def error_object(error: ByzerError) -> dict[str, Any]:
    """OpenAI's error object. A vendor's error keeps the vendor's code, type and request id."""
    code: Any = error.code
    kind = error.kind
    message = error.message if error.hint is None else f"{error.message} {error.hint}"
    fields: dict[str, Any] = {}
    if isinstance(error, UpstreamError):
        code = error.vendor_code if error.vendor_code is not None else error.code
        kind = error.vendor_type or error.kind
        if error.request_id:
            fields["upstream_request_id"] = error.request_id
    return {"message": message, "type": kind, "param": error.param, "code": code, **fields}


def error_body(error: ByzerError) -> bytes:
    """An error answer's JSON body."""
    return msgspec.json.encode({"error": error_object(error)})


def error_event(error: ByzerError) -> bytes:
    """An error inside a stream that has begun: one event, after which the stream ends without ``[DONE]``."""
    return b"data: " + error_body(error) + b"\n\n"


def internal_error(request_id: str) -> ByzerError:
    """What a client is told of a defect: where to look, no traceback."""
    return InternalError(f"Internal error while answering {request_id}; the server's log has the details.")
