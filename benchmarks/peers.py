"""Other gateways, each in a virtual environment of its own under the cache folder; installed when first asked for."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.contenders import KEY, SERVER_CORE, Contender, free_port, running
from benchmarks.load import MODEL

INSTALL_SECONDS = 600
START_SECONDS = 120


def environment(name: str, requirement: str) -> Path:
    """The ``bin`` folder of an environment that has ``requirement``.

    Raises:
        RuntimeError: it could not be installed within the time.
    """
    root = _cache(name)
    done = root / "installed"
    if not done.exists():
        venv.create(root, with_pip=True, clear=True)
        _install(root / "bin" / "python", requirement)
        done.touch()
    return root / "bin"


def extension(name: str, python: Path, *requirements: str) -> Path:
    """A folder with ``requirements`` for the environment of ``python``, which is left as it is.

    Raises:
        RuntimeError: they could not be installed within the time.
    """
    root = _cache(name)
    done = root / "installed"
    if not done.exists():
        _install(python, "--upgrade", "--target", str(root), *requirements)
        done.touch()
    return root


def _cache(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "byzerllm-benchmarks" / name


def _install(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"pip install {arguments[-1]} took more than {INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"pip install {arguments[-1]}: {error.stderr[-500:]}") from None


@contextlib.contextmanager
def litellm(upstream: int) -> Iterator[Contender]:
    """The LiteLLM proxy as installed, one worker process, key check on."""
    binaries = environment("litellm", "litellm[proxy]")
    with tempfile.TemporaryDirectory(prefix="bench-litellm-") as home:
        config = Path(home, "config.yaml")
        config.write_text(
            f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/mock-chat\n"
            f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: x\n"
            f"general_settings:\n  master_key: {KEY}\n"
        )
        port = free_port()
        command = [str(binaries / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
        with running(command, port, SERVER_CORE, START_SECONDS, PATH=path) as pid:
            yield Contender("litellm", port, port, pid)


@contextlib.contextmanager
def sglang_router(upstream: int) -> Iterator[Contender]:
    """SGLang's router, in Rust, round robin over the one upstream."""
    binaries = environment("sglang-router", "sglang-router")
    port = free_port()
    command = [str(binaries / "python"), "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port()), "--api-key", KEY]
    with running(command, port, SERVER_CORE, START_SECONDS) as pid:
        yield Contender("sglang-router", port, port, pid)


PEERS: dict[str, Callable[[int], contextlib.AbstractContextManager[Contender]]] = {
    "litellm": litellm,
    "sglang-router": sglang_router,
}
