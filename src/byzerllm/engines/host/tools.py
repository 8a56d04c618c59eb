"""``tools`` of a chat request, and what its ``tool_choice`` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from byzerllm.engines.host.backend import ForcedCalls, Function
from byzerllm.engines.host.fields import Fields
from byzerllm.engines.host.generation import check_may_end
from byzerllm.engines.host.tool_calls import ForcedReader, Reader, ToolReader

FORMS_OF_CHOICE = 'must be auto, none, required or {"type": "function", "function": {"name": NAME}}'
# Of a function without parameters, as OpenAI has it.
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """``offered`` are shown to the model. ``forced`` are the calls that its answer must be, None where it decides
    itself; ``named``: it must be the one function that the client has chosen. ``several``: there may be more than one
    call in an answer."""

    offered: list[dict[str, Any]]
    forced: ForcedCalls | None = None
    named: bool = False
    several: bool = True

    def reader(self, format_: str | None) -> Reader | None:
        """What finds the calls of one answer in ``format_``; None if there can be none."""
        if self.forced:
            return ForcedReader(self.forced.format)
        return ToolReader(format_, several=self.several) if self.offered and format_ else None


def read_tools(fields: Fields, format_: str | None) -> Tools:
    """The tools of a request to a model that writes calls in ``format_``, None if that is not known.

    Raises:
        InvalidInput: a field is malformed, or a call is wanted that cannot be forced.
    """
    offered = fields.objects("tools")
    functions = [_function(fields, number, tool) for number, tool in enumerate(offered)]
    choice = fields.raw("tool_choice")
    several = fields.flag("parallel_tool_calls", True)
    if choice == "none":
        return Tools([])
    if choice in (None, "auto"):
        return Tools(offered, several=several)
    named = choice != "required"
    if named:
        name = _name(fields, choice)
        functions = [function for function in functions if function["name"] == name]
    if not functions:
        raise fields.bad("tool_choice", "names no function of 'tools'" if named else "needs 'tools'")
    if format_ is None:
        raise fields.bad(
            "tool_choice", "can be auto or none here: the model's chat template shows no form of calls that is known"
        )
    check_may_end(fields, "tool_choice")
    callable_ = tuple(_callable(fields, function) for function in functions)
    return Tools(offered, ForcedCalls(format_, callable_, several and not named), named, several)


def _function(fields: Fields, number: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise fields.bad("tools", "must be of type function, each with its 'function'")
    if not isinstance(function.get("name"), str):
        raise fields.bad(f"tools[{number}].function.name", "must be a string")
    return function


def _name(fields: Fields, choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise fields.bad("tool_choice", FORMS_OF_CHOICE)
    return name


def _callable(fields: Fields, function: dict[str, Any]) -> Function:
    parameters = function.get("parameters")
    if parameters is None:
        parameters = NO_PARAMETERS
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise fields.bad("tools", f"has in 'parameters' of {function['name']!r} no schema of an object")
    return Function(function["name"], parameters, function.get("strict") is True)
