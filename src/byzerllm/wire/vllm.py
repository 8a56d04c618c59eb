"""What vLLM's server speaks: OpenAI's format. Its errors name flags of its own, which nobody gave here.

Facts: vllm/entrypoints/serve/engine/protocol.py and vllm/renderers/params.py of vLLM 0.32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from byzerllm.errors import ContextExceeded, UpstreamError
from byzerllm.wire.base import Request
from byzerllm.wire.engine import EngineWire
from byzerllm.wire.openai import OpenAIWire

_FLAG = re.compile(r"(?<![\w-])`?--([a-z][a-z0-9-]+)`?")
_TOO_LONG = re.compile(r"maximum context length|longer than the maximum model length|greater than max_model_len")
_NO_FIELDS = ("input_tokens", "input_text")  # names of its own for the prompt, where it is too long
_REPEATS = re.compile(r"\d+ validation error")  # what follows has the client's own text in it


class VllmWire(EngineWire):
    """Pass-through; refusals are put in terms of the command line."""

    name = "vllm"

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = super().error(status, headers, body)
        if error.status == ContextExceeded.default_status:
            error.vendor_type = ContextExceeded.kind
            if _TOO_LONG.search(error.message):
                error.vendor_code = ContextExceeded.code
                error.param = None if error.param in _NO_FIELDS else error.param
        if _FLAG.search(error.message) and not _REPEATS.match(error.message):
            named = _FLAG.sub(lambda flag: f"backend.{flag[1].replace('-', '_')}", error.message)
            error.message = f"{named.rstrip('.')} (parameters of byzerllm deploy)."
        return error


class VllmFetchingWire(VllmWire):
    """Of a vLLM that was told what it may fetch, and looks at each address itself."""

    name = "vllm_fetching"

    def body(self, request: Request, model: str, defaults: Mapping[str, msgspec.Raw]) -> bytes:
        return OpenAIWire.body(self, request, model, defaults)
