"""Wire formats by name. A new format is one file here and one line in ``WIRES``."""

from __future__ import annotations

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Wire
from byzerllm.wire.openai import OpenAIWire

WIRES: dict[str, Wire] = {"openai": OpenAIWire()}


def wire(name: str) -> Wire:
    """The format of that name.

    Raises:
        InvalidInput: there is none; the known names are listed.
    """
    try:
        return WIRES[name]
    except KeyError:
        raise InvalidInput(f"Unknown wire format {name!r}. Known: {', '.join(sorted(WIRES))}.") from None
