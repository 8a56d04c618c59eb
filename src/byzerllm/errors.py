"""Every error a user can meet, on one page.

    ByzerError
    ├── InvalidInput            400  exit 2   what was typed or sent is wrong
    │   ├── TooLarge            413  exit 2
    │   └── ContextExceeded     400  exit 2   the prompt, or it and its answer, is longer than the model can read
    ├── AuthenticationFailed    401
    ├── Forbidden               403
    ├── NotFound                404
    │   └── ModelNotFound       404           names the instances that there are
    ├── Conflict                409           the name is taken, with other parameters
    ├── Overloaded              503           the queue is full, or the wait was too long (Retry-After)
    ├── UpstreamError           the vendor's  the vendor or engine answered with an error
    │   ├── UpstreamUnreachable 502           no connection
    │   ├── UpstreamBroken      502           the answer broke off or was no HTTP
    │   └── UpstreamTimeout     504
    ├── DeploymentFailed        500           the instance could not be started
    ├── EngineMissing           400           the engine is not installed
    ├── CapacityExceeded        400           more CPUs or GPUs than there are
    ├── ServerUnavailable       503           no server runs, or it could not be started
    └── InternalError           500           a defect in byzerllm

A class fixes the code, the HTTP status, the exit code and whether a retry elsewhere can help; an instance adds the
message and ``hint``, the next thing to do. Every error survives pickling, since it may cross processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

_SHORTEST_SECRET = 8
_MAX_BODY = 64 * 1024  # of a vendor's error answer, in bytes


class ByzerError(Exception):
    """Base of all errors. ``message`` says what is wrong and where; ``hint`` names the next command to run."""

    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "api_error"  # the ``type`` of OpenAI's error object
    default_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.status = status or self.default_status
        self.retry_after = retry_after
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[ByzerError], message: str, state: dict[str, Any]) -> ByzerError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class InvalidInput(ByzerError):
    """What the user typed or the client sent is wrong; nothing was changed."""

    code = "invalid_request"
    kind = "invalid_request_error"
    default_status = 400
    exit_code = 2


class TooLarge(InvalidInput):
    """The request body is over the limit."""

    code = "request_too_large"
    default_status = 413


class ContextExceeded(InvalidInput):
    """The prompt, or it and the answer that was asked for, is longer than the model's context."""

    code = "context_length_exceeded"


class AuthenticationFailed(ByzerError):
    """No key, or a key this server does not know."""

    code = "invalid_api_key"
    kind = "authentication_error"
    default_status = 401


class Forbidden(ByzerError):
    """The request comes from where it must not (a foreign Host or Origin)."""

    code = "forbidden"
    kind = "permission_error"
    default_status = 403


class NotFound(ByzerError):
    """No instance, path or worker of that name."""

    code = "not_found"
    kind = "not_found_error"
    default_status = 404


class ModelNotFound(NotFound):
    """No instance of that name; ``details["names"]`` has those there are."""

    code = "model_not_found"


class Conflict(ByzerError):
    """The name is in use with other parameters, or the deployment is in a state that forbids this."""

    code = "conflict"
    kind = "conflict_error"
    default_status = 409


class Overloaded(ByzerError):
    """No slot came free in time, or too many requests wait already; ``retry_after`` is in seconds."""

    code = "overloaded"
    kind = "overloaded_error"
    default_status = 503
    retryable = True


class UpstreamError(ByzerError):
    """The vendor or engine answered with an error: its own status, code and message.

    ``vendor_code``, ``vendor_type`` and ``request_id`` are the vendor's; ``body`` is what it sent, cut at 64 KiB.
    ``was_answered``: it has done the work, and would do it, and charge for it, again.
    """

    code = "upstream_error"
    kind = "upstream_error"
    default_status = 502

    def __init__(
        self,
        message: str,
        *,
        vendor_code: str | int | None = None,
        vendor_type: str | None = None,
        request_id: str | None = None,
        body: bytes = b"",
        was_answered: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.vendor_code = vendor_code
        self.vendor_type = vendor_type
        self.request_id = request_id
        self.body = body[:_MAX_BODY]
        self.was_answered = was_answered

    def hide(self, secrets: Iterable[str]) -> None:
        """Star every secret that the vendor repeats in its message; a very short one may be a word and stays."""
        for secret in secrets:
            if len(secret) >= _SHORTEST_SECRET:
                self.message = self.message.replace(secret, "******")


class UpstreamUnreachable(UpstreamError):
    """No connection to the vendor or engine could be made."""

    code = "upstream_unreachable"
    retryable = True


class UpstreamBroken(UpstreamError):
    """The upstream closed the connection early, or sent what is not HTTP."""

    code = "upstream_broken"
    retryable = True


class UpstreamTimeout(UpstreamError):
    """One of the four timeouts passed: ``details["timeout"]`` is connect, first_byte, idle or total."""

    code = "upstream_timeout"
    default_status = 504
    retryable = True


class DeploymentFailed(ByzerError):
    """An instance could not be started; the message carries the engine's last log lines or the vendor's words."""

    code = "deployment_failed"


class EngineMissing(ByzerError):
    """The engine is not installed; the hint is the command that installs it."""

    code = "engine_missing"
    kind = "invalid_request_error"
    default_status = 400


class CapacityExceeded(ByzerError):
    """The deployment asks for more CPUs or GPUs than are free."""

    code = "capacity_exceeded"
    kind = "invalid_request_error"
    default_status = 400


class ServerUnavailable(ByzerError):
    """No server answers, or it could not be started."""

    code = "server_unavailable"
    default_status = 503


class InternalError(ByzerError):
    """A defect in byzerllm itself; the log has the traceback."""

    code = "internal_error"


def error_types() -> list[type[ByzerError]]:
    """Every class of the tree, the base first."""
    found: list[type[ByzerError]] = [ByzerError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return found


def from_payload(payload: dict[str, Any], status: int) -> ByzerError:
    """The error that a server's JSON ``{"error": {...}}`` object describes, for the client's side of the wire."""
    code = payload.get("code")
    by_code = {cls.code: cls for cls in error_types()}
    cls = by_code.get(code, ByzerError) if isinstance(code, str) else ByzerError
    if status and cls is ByzerError and status < 500:
        cls = InvalidInput if status == 400 else UpstreamError
    error = cls(str(payload.get("message") or f"the server answered with status {status}"))
    error.status = status or cls.default_status
    error.param = payload.get("param")
    error.hint = payload.get("hint")
    error.details = payload.get("details") or {}
    return error
