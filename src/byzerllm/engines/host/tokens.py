"""``/tokenize`` and ``/detokenize``, in vLLM's form."""

from __future__ import annotations

import asyncio

from byzerllm.engines.host.backend import TextModel
from byzerllm.engines.host.chat import check_chat_length, read_messages, read_template_options
from byzerllm.engines.host.fields import Fields
from byzerllm.engines.host.generation import check_length
from byzerllm.engines.host.protocol import Answer, HttpRequest, Whole


async def tokenize(model: TextModel, request: HttpRequest, _name: str) -> Answer:
    """The tokens of a ``prompt``, or of ``messages`` in the chat template.

    Raises:
        InvalidInput: neither is there, or both are.
        ContextExceeded: it is longer than any text that the model reads.
    """
    fields = Fields(request.json())
    fields.ignore("model")
    shown = fields.flag("return_token_strs")
    special = fields.flag("add_special_tokens", True)
    if fields.raw("messages") is not None:
        if not hasattr(model, "chat_prompt"):
            raise fields.bad("messages", "is for chat models; give 'prompt'")
        fields.only("prompt")
        options = read_template_options(fields)
        tools = fields.objects("tools")
        messages = read_messages(fields)
        fields.refuse_rest()
        check_chat_length(messages, tools, model)
        ids = (await model.chat_prompt(messages, tools or None, options)).ids
    else:
        text = fields.text("prompt")
        if text is None:
            raise fields.bad("prompt", "is missing: give it, or 'messages'")
        fields.refuse_rest()
        check_length(len(text), model, "prompt")
        ids = await model.encode(text, special=special)
    strings = await asyncio.to_thread(_strings, model, ids) if shown else None
    answer = {"tokens": ids, "count": len(ids), "max_model_len": model.context}
    return Whole({**answer, "token_strs": strings})


def _strings(model: TextModel, ids: list[int]) -> list[str]:
    return [model.decode([token], special=True) for token in ids]


async def detokenize(model: TextModel, request: HttpRequest, _name: str) -> Answer:
    """The text of ``tokens``.

    Raises:
        InvalidInput: they are no tokens of the model.
    """
    fields = Fields(request.json())
    fields.ignore("model")
    ids = fields.wholes("tokens")
    fields.refuse_rest()
    return Whole({"prompt": await asyncio.to_thread(model.decode, ids, special=True)})
