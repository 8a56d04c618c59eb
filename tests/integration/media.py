"""What the tests of speech and images have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fakes import Reply

if TYPE_CHECKING:
    from tests.harness import Answer, Byzer

SOUND = bytes(range(256)) * 1000


def sound_reply(*steps: Any, kind: str = "audio/mpeg") -> Reply:
    return Reply(steps or [SOUND], headers={"content-type": kind}, framing="chunked")


def speak(server: Byzer, model: str, **fields: Any) -> Answer:
    return server.http("POST", "/v1/audio/speech", {"model": model, "input": "hi", **fields})


def of(kind: str) -> dict[str, Any]:
    """For ``deploy``: an instance of that type."""
    return {"pretrained_model_type": kind}


def error_of(answer: Answer) -> Any:
    return answer.json()["error"]
