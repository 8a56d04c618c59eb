"""The error tree: what each class means to a client, and that errors cross processes whole."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from byzerllm import errors
from byzerllm.errors import ByzerError, UpstreamError, error_types, from_payload

# class: code, OpenAI type, HTTP status, exit code, whether another worker may succeed
TABLE = {
    "ByzerError": ("internal_error", "api_error", 500, 1, False),
    "InvalidInput": ("invalid_request", "invalid_request_error", 400, 2, False),
    "TooLarge": ("request_too_large", "invalid_request_error", 413, 2, False),
    "ContextExceeded": ("context_length_exceeded", "invalid_request_error", 400, 2, False),
    "AuthenticationFailed": ("invalid_api_key", "authentication_error", 401, 1, False),
    "Forbidden": ("forbidden", "permission_error", 403, 1, False),
    "NotFound": ("not_found", "not_found_error", 404, 1, False),
    "ModelNotFound": ("model_not_found", "not_found_error", 404, 1, False),
    "Conflict": ("conflict", "conflict_error", 409, 1, False),
    "Overloaded": ("overloaded", "overloaded_error", 503, 1, True),
    "UpstreamError": ("upstream_error", "upstream_error", 502, 1, False),
    "UpstreamUnreachable": ("upstream_unreachable", "upstream_error", 502, 1, True),
    "UpstreamBroken": ("upstream_broken", "upstream_error", 502, 1, True),
    "UpstreamTimeout": ("upstream_timeout", "upstream_error", 504, 1, True),
    "DeploymentFailed": ("deployment_failed", "api_error", 500, 1, False),
    "EngineMissing": ("engine_missing", "invalid_request_error", 400, 1, False),
    "CapacityExceeded": ("capacity_exceeded", "invalid_request_error", 400, 1, False),
    "ServerUnavailable": ("server_unavailable", "api_error", 503, 1, False),
    "InternalError": ("internal_error", "api_error", 500, 1, False),
}

every_class = pytest.mark.parametrize("cls", error_types(), ids=lambda cls: cls.__name__)


def full(cls: type[ByzerError]) -> ByzerError:
    """An error of the class with every field set to something other than its default."""
    common: dict[str, Any] = {
        "hint": "Run it again.",
        "param": "model",
        "status": 418,
        "retry_after": 2.5,
        "details": {"names": ["a"]},
    }
    if issubclass(cls, UpstreamError):
        common |= {"vendor_code": "1302", "vendor_type": "limit", "request_id": "r-1", "body": b"{}"}
    return cls("It broke.", **common)


@every_class
def test_each_class_has_its_code_status_and_exit_code(cls: type[ByzerError]) -> None:
    assert (cls.code, cls.kind, cls.default_status, cls.exit_code, cls.retryable) == TABLE[cls.__name__]


def test_an_error_keeps_no_more_of_a_vendors_body_than_it_says() -> None:
    assert len(UpstreamError("no", body=b"x" * 100_000).body) == 64 * 1024


def test_the_table_lists_every_class() -> None:
    assert set(TABLE) == {cls.__name__ for cls in error_types()}


@every_class
def test_an_error_survives_pickling_with_all_its_fields(cls: type[ByzerError]) -> None:
    error = full(cls)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert copy.__dict__ == error.__dict__
    assert copy.args == error.args
    assert str(copy) == "It broke. Run it again."


@every_class
def test_an_error_without_options_has_the_defaults_of_its_class(cls: type[ByzerError]) -> None:
    error = cls("It broke.")
    assert (error.status, error.hint, error.param, error.retry_after) == (cls.default_status, None, None, None)
    assert error.details == {}
    assert str(error) == "It broke."


def test_every_code_belongs_to_one_class_that_callers_meet() -> None:
    codes = [cls.code for cls in error_types() if cls is not ByzerError]
    assert len(codes) == len(set(codes))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d{3}|the vendor's)", errors.__doc__ or ""))
    for cls in error_types():
        if cls in (ByzerError, UpstreamError):
            assert cls.__name__ in (errors.__doc__ or "")
        else:
            assert drawn.get(cls.__name__) == str(cls.default_status), cls.__name__


@every_class
def test_a_payload_becomes_the_class_that_it_came_from(cls: type[ByzerError]) -> None:
    sent = full(cls)
    payload = {
        "message": sent.message,
        "type": sent.kind,
        "code": sent.code,
        "param": sent.param,
        "hint": sent.hint,
        "details": sent.details,
    }
    got = from_payload(payload, sent.status)
    # The base itself is never sent: it shares its code with InternalError, its one name on the wire.
    assert type(got) is (errors.InternalError if cls is ByzerError else cls)
    assert (got.message, got.hint, got.param) == (sent.message, sent.hint, sent.param)
    assert (got.status, got.details, got.exit_code) == (418, sent.details, sent.exit_code)


@pytest.mark.parametrize(
    ("payload", "status", "expected"),
    [
        ({"code": "no_such_code", "message": "m"}, 400, errors.InvalidInput),
        ({"code": "no_such_code", "message": "m"}, 429, errors.UpstreamError),
        ({"code": 1302, "message": "m"}, 500, ByzerError),
        ({}, 503, ByzerError),
    ],
)
def test_a_payload_with_an_unknown_code_is_classed_by_its_status(
    payload: dict[str, Any], status: int, expected: type[ByzerError]
) -> None:
    error = from_payload(payload, status)
    assert type(error) is expected
    assert error.status == status
    assert error.message == payload.get("message", f"the server answered with status {status}")


def test_a_payload_without_a_status_has_that_of_its_class() -> None:
    assert from_payload({"code": "model_not_found", "message": "m"}, 0).status == 404


def test_a_secret_that_the_vendor_repeats_is_starred() -> None:
    error = UpstreamError("Incorrect key sk-0123456789, see sk-0123456789; a word stays")
    error.hide(["sk-0123456789", "word", ""])
    assert error.message == "Incorrect key ******, see ******; a word stays"
    assert "sk-0123456789" not in str(error)
