"""Whether a process runs, as ``byzerllm server stop`` sees it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.harness import eventually

from byzerllm.client.server_file import process_exists


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        assert process_exists(process.pid)
        assert process.stdin
        process.stdin.close()
        # Popen has not been asked for its status: it is a zombie until then.
        eventually(lambda: not process_exists(process.pid))
        assert process.returncode is None
    assert not process_exists(process.pid)


def test_processes_of_others_and_of_ours_exist() -> None:
    assert process_exists(os.getpid())
    assert process_exists(1)
