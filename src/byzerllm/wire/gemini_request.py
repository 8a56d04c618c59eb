"""Requests to Gemini: chats as ``generateContent``, texts as ``embedContent``.

Facts: ai.google.dev/api/generate-content and /api/embeddings, ai.google.dev/gemini-api/docs/thought-signatures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlsplit

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Vendor
from byzerllm.wire.chat import Call, ChatRequest, ImagePart, Message, TextPart
from byzerllm.wire.embedding import EmbeddingRequest
from byzerllm.wire.limits import check_messages

Fields = dict[str, Any]

# Fields by the API's own names that clients may add; it refuses what it does not know.
_OWN = frozenset(("generationConfig", "safetySettings", "cachedContent", "labels", "serviceTier"))
_OWN_EMBEDDING = frozenset(("taskType", "title"))
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
# What Google documents for calls in a history that came without their signature: from another model, or through a
# client that keeps only the fields it knows.
_UNSIGNED = "skip_thought_signature_validator"
_IMAGE_TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif",
    "heic": "image/heic", "heif": "image/heif",
}  # fmt: skip


def model_path(vendor: Vendor) -> str:
    """``/models/NAME``, escaped; a name with a folder of its own (``tunedModels/x``) keeps it."""
    model = vendor.model if "/" in vendor.model else f"models/{vendor.model}"
    return "/" + quote(model)


def chat_fields(chat: ChatRequest, vendor: Vendor) -> Fields:
    """The body of ``generateContent``.

    Raises:
        InvalidInput: the request asks for what Gemini cannot do.
    """
    _check(chat, vendor)
    own = dict(chat.extra)
    generation = {**_generation_of_client(own), **_generation(chat, vendor)}
    fields: Fields = {"contents": _contents(chat, vendor), **own}
    system = chat.system()
    if system:
        fields["systemInstruction"] = {"parts": [{"text": system}]}
    if generation:
        fields["generationConfig"] = generation
    if chat.tools:
        vendor.needs("tools", "tools")
        fields["tools"] = [
            {"functionDeclarations": [_declaration(t.name, t.description, t.parameters) for t in chat.tools]}
        ]
    calling = _calling(chat)
    if calling:
        fields["toolConfig"] = {"functionCallingConfig": calling}
    return fields


def _check(chat: ChatRequest, vendor: Vendor) -> None:
    _check_extra(chat.extra, _OWN)
    check_messages(chat, vendor)
    if (chat.n or 1) > 1:
        vendor.needs("n", "n")
    if chat.parallel_tool_calls is False:
        vendor.needs("switch for parallel calls", "parallel_tool_calls")
    for number, message in enumerate(chat.messages):
        if message.role in ("system", "tool") and any(isinstance(p, ImagePart) for p in message.parts):
            raise InvalidInput(
                f"Gemini takes no images in {message.role} messages (messages[{number}]).", param="messages"
            )


def _check_extra(extra: Iterable[str], own: frozenset[str]) -> None:
    unknown = next((name for name in extra if name not in own), None)
    if unknown is not None:
        raise InvalidInput(
            f"Gemini has nothing for {unknown!r}: leave it out. Fields of its own are: {', '.join(sorted(own))}.",
            param=unknown,
        )


def _generation_of_client(own: Fields) -> Fields:
    given = own.pop("generationConfig", {})
    if not isinstance(given, dict):
        raise InvalidInput("'generationConfig' must be an object.", param="generationConfig")
    return given


def _generation(chat: ChatRequest, vendor: Vendor) -> Fields:
    fields: Fields = {
        "temperature": chat.temperature,
        "topP": chat.top_p,
        "topK": chat.top_k,
        "maxOutputTokens": chat.max_tokens,
        "stopSequences": list(chat.stop) or None,
        "seed": chat.seed,
        "presencePenalty": chat.presence_penalty,
        "frequencyPenalty": chat.frequency_penalty,
        "thinkingConfig": _thinking(chat.reasoning_effort, vendor),
    }
    if chat.json_object or chat.json_schema is not None:
        vendor.needs("json_schema", "response_format")
        fields["responseMimeType"] = "application/json"
        fields["responseJsonSchema"] = chat.json_schema
    return {name: value for name, value in fields.items() if value is not None}


def _thinking(effort: str | None, vendor: Vendor) -> Fields | None:
    """The table says what an effort is for the model: a number is a budget of tokens, a name a level."""
    if effort is None:
        return None
    vendor.needs("reasoning", "reasoning_effort")
    efforts: Fields = vendor.fact("thinking") or {}
    if effort not in efforts:
        raise InvalidInput(
            f"{vendor.model} has no reasoning_effort {effort!r}. It has: {', '.join(efforts) or 'none'}.",
            param="reasoning_effort",
        )
    value = efforts[effort]
    if value == 0:
        return {"thinkingBudget": 0}
    return {"includeThoughts": True, "thinkingLevel" if isinstance(value, str) else "thinkingBudget": value}


def _declaration(name: str, description: str, schema: Fields) -> Fields:
    return {"name": name, **({"description": description} if description else {}), "parametersJsonSchema": schema}


def _calling(chat: ChatRequest) -> Fields:
    choice = chat.tool_choice
    if choice is not None and choice.startswith("="):
        return {"mode": "ANY", "allowedFunctionNames": [choice[1:]]}
    if choice in (None, "auto") and any(t.strict for t in chat.tools):
        return {"mode": "VALIDATED"}  # as AUTO, and the arguments keep to the schema
    return {"mode": _MODES[choice]} if choice is not None else {}


def _contents(chat: ChatRequest, vendor: Vendor) -> list[Fields]:
    """The turns; neighbours of one role are one turn, as Gemini wants them."""
    contents: list[Fields] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    for message in chat.turns():
        names.update((call.id, call.name) for call in message.calls)
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names, vendor)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: dict[str, str], vendor: Vendor) -> list[Fields]:
    if message.role == "tool":
        return [_function_response(message, names)]
    parts: list[Fields] = []
    if message.reasoning:
        parts.append({"text": message.reasoning, "thought": True})
    parts += [
        {"text": part.text} if isinstance(part, TextPart) else _image(part, vendor)
        for part in message.parts
        if part != TextPart("")
    ]
    if message.signature:
        if not parts:
            parts.append({"text": ""})
        parts[-1]["thoughtSignature"] = message.signature
    return parts + _function_calls(message.calls, vendor)


def _image(image: ImagePart, vendor: Vendor) -> Fields:
    vendor.needs("vision", "messages")
    data = image.data()
    if data is not None:
        return {"inlineData": {"mimeType": data[0], "data": data[1]}}
    media_type = _IMAGE_TYPES.get(urlsplit(image.url).path.rpartition(".")[2].lower())
    return {"fileData": {**({"mimeType": media_type} if media_type else {}), "fileUri": image.url}}


def _function_calls(calls: tuple[Call, ...], vendor: Vendor) -> list[Fields]:
    """Of calls made at once only the first one is signed."""
    signatures = [call.signature for call in calls]
    if calls and not any(signatures) and vendor.fact("signs_calls"):
        signatures[0] = _UNSIGNED
    return [
        {"functionCall": _function_call(call), **({"thoughtSignature": signature} if signature else {})}
        for call, signature in zip(calls, signatures, strict=True)
    ]


def _function_call(call: Call) -> Fields:
    return {**({"id": call.id} if call.id else {}), "name": call.name, "args": call.input()}


def _function_response(message: Message, names: dict[str, str]) -> Fields:
    name = names.get(message.call_id) or message.name
    if not name:
        raise InvalidInput(f"No call before it has the tool_call_id {message.call_id!r}.", param="messages")
    id_field = {"id": message.call_id} if message.call_id else {}
    return {"functionResponse": {**id_field, "name": name, "response": {"result": message.text}}}


def embedding_fields(request: EmbeddingRequest, vendor: Vendor) -> tuple[str, Fields]:
    """The method for one text or several, and its body.

    Raises:
        InvalidInput: a field that Gemini does not have.
    """
    _check_extra(request.extra, _OWN_EMBEDDING)
    options = dict(request.extra)
    if request.dimensions is not None:
        options["outputDimensionality"] = request.dimensions
    each = [{"content": {"parts": [{"text": text}]}, **options} for text in request.texts]
    if len(each) == 1:
        return "embedContent", each[0]
    model = model_path(vendor)[1:]
    return "batchEmbedContents", {"requests": [{"model": model, **fields} for fields in each]}
