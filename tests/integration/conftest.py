"""A vendor for all tests of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fakes import FakeUpstream, json_reply
from tests.gateway import ANSWER

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        upstream.default = json_reply(ANSWER)
        yield upstream
