"""Chat templates: Jinja in a file or on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from byzerllm.errors import InvalidInput

_MARK = re.compile(r"{%[-+]?\s*(?:end)?generation\s*[-+]?%}")  # a tag of transformers' own: what the model has said


def template_text(value: str) -> str:
    """``backend.chat_template``: a file's path, or the template itself."""
    return value if "{" in value else Path(value).expanduser().read_text("utf-8")


def flaw_of(template: str) -> str | None:
    """Why it is no Jinja template, None if it is one."""
    import jinja2

    try:
        _environment().compile(_MARK.sub("", template))
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {str(error.message).rstrip('.')}"
    return None


def variables_of(template: str) -> set[str]:
    """The variables of a chat template that it does not set itself."""
    import jinja2.meta

    found: set[str] = jinja2.meta.find_undeclared_variables(_environment().parse(_MARK.sub("", template)))
    return found


def refusals() -> tuple[type[Exception], ...]:
    """What a chat template raises for messages that it does not take."""
    import jinja2

    wrong_kind = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
    return (jinja2.TemplateError, *wrong_kind)


def refused(error: Exception) -> InvalidInput:
    reason = str(error).rstrip(".")
    return InvalidInput(f"The model's chat template does not take these messages: {reason}.", param="messages")


def _environment() -> Any:
    import jinja2

    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
