"""Fixtures for every test; ``harness.py`` and ``fakes.py`` beside this file say what they give."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from tests.between import Authority
from tests.fakes import FakeUpstream
from tests.harness import Byzer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

pytest_plugins = ["tests.fixtures_models", "tests.fixtures_ray"]

_UNIT = Path(__file__).with_name("unit")

# A test reads no setting of the person who runs it, reaches no proxy, and can bill no account.
_FOREIGN = ("BYZERLLM_", "RAY_", "OPENAI_", "ANTHROPIC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def pytest_collection_finish() -> None:
    """What there is before the first test stays, and is not looked at each time that garbage is collected."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file or a socket that a test leaves open is that test's error, not the one's in which it would be noticed.
    It costs some milliseconds: too many for each of the unit tests."""
    yield
    if _UNIT not in request.path.parents:
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background may ignore SIGINT, and so would every command that is started here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.upper().startswith(_FOREIGN)]:
            patch.delenv(name)
        patch.setenv("BYZERLLM_HOME", str(tmp_path_factory.mktemp("no-home") / "unused"))
        patch.setenv("RAY_TMPDIR", str(tmp_path_factory.mktemp("no-ray")))  # a cluster of this machine is not found
        yield


@pytest.fixture(scope="module")
def make_byzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Byzer]]:
    """``make_byzer(NAME="value", ...)``: a fresh home with these variables, stopped after the module."""
    made: list[Byzer] = []

    def make(**environ: str) -> Byzer:
        made.append(Byzer(tmp_path_factory.mktemp("home"), **environ))
        return made[-1]

    yield make
    for byzer in made:
        byzer.stop()


@pytest.fixture(scope="module")
def byzer(make_byzer: Callable[..., Byzer]) -> Byzer:
    """One home for all tests of a module; they share its server."""
    return make_byzer()


@pytest.fixture(scope="module")
def server(byzer: Byzer) -> Byzer:
    """That home with its server running; nothing is deployed."""
    byzer.run("server", "start")
    return byzer


@pytest.fixture
def fresh_byzer(tmp_path: Path) -> Iterator[Byzer]:
    """A home of this test alone."""
    byzer = Byzer(tmp_path / "home")
    yield byzer
    byzer.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate for this machine, and the authority that vouches for it."""
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def no_blocking() -> Iterator[BlockBuster]:
    """Makes a blocking call of byzerllm's own code in an event loop an error."""
    with blockbuster_ctx("byzerllm") as detector:
        yield detector


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the logs of the servers that a failed test used to its report."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).values()
        for byzer in (value for value in used if isinstance(value, Byzer)):
            report.sections.append((f"logs in {byzer.home}", byzer.log_tail()))
    return report
