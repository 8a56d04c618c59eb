"""What is said of a worker that did not start."""

from __future__ import annotations

from byzerllm.control.ending import failure, how, without_tracebacks
from byzerllm.engines import engine
from byzerllm.engines.llama_cpp import LlamaCpp
from byzerllm.runtime.base import Exit

LLAMA = engine("llama_cpp")

PLAIN = """loading
Traceback (most recent call last):
  File "/x/host.py", line 3, in main
    load()
    ~~~~^^
  File "<frozen runpy>", line 88, in _run_code
RuntimeError: no such model

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/x/host.py", line 9, in <module>
    main()
SystemExit: 1
"""
LOGGED = """(Core pid=7) ERROR 11-23 05:00:01 [core.py:9] Traceback (most recent call last):
(Core pid=7) ERROR 11-23 05:00:01 [core.py:9]   File "/x/core.py", line 3, in run
(Core pid=7) ERROR 11-23 05:00:01 [core.py:9]     self.start()
(Core pid=7) ERROR 11-23 05:00:01 [core.py:9]     ^^^^^^^^^^^^
(Core pid=7) ERROR 11-23 05:00:01 [core.py:9] ValueError: No memory for the cache
(Core pid=7) INFO 11-23 05:00:02 [core.py:9] bye
"""


def test_of_a_traceback_only_the_exception_is_left() -> None:
    assert without_tracebacks(PLAIN) == ["loading", "RuntimeError: no such model", "SystemExit: 1"]


def test_also_where_a_logger_has_put_its_words_before_each_line() -> None:
    start = "(Core pid=7)"
    assert without_tracebacks(LOGGED) == [
        f"{start} ERROR 11-23 05:00:01 [core.py:9] ValueError: No memory for the cache",
        f"{start} INFO 11-23 05:00:02 [core.py:9] bye",
    ]


def test_the_cause_comes_first_and_few_lines_after_it() -> None:
    log = "unknown model architecture: 'novel'\n" + "".join(f"line {n}\n" for n in range(50))
    error = failure("worker 0 ended with exit code 1", LLAMA, log)
    assert error.message.startswith("This llama.cpp does not know the architecture novel")
    assert error.message.endswith("worker 0 ended with exit code 1. Its last log lines:\nline 47\nline 48\nline 49")
    assert error.details["log"] == log


def test_without_a_known_cause_there_are_more_lines() -> None:
    message = failure("worker 1 ended by signal 9", LLAMA, "".join(f"line {n}\n" for n in range(50))).message
    assert message.startswith("worker 1 ended by signal 9. Its last log lines:\nline 40\n")
    assert failure("worker 1 ended", LLAMA, "").message == "worker 1 ended. Its log is empty."


def test_a_line_that_repeats_the_cause_is_not_shown_and_a_long_one_is_cut() -> None:
    class Said(LlamaCpp):
        def cause(self, tail: str) -> str | None:
            return "no memory left"

    message = failure("worker 1 ended", Said(), f"{'x' * 1000}\nbyzerllm: cause: no memory left\n").message
    assert message == f"no memory left. worker 1 ended. Its last log lines:\n{'x' * 236} ..."


def test_how_a_process_ended() -> None:
    assert how(Exit(3, "")) == "ended with exit code 3"
    assert how(Exit(-9, "")) == "ended by signal 9"
    assert how(Exit(None, "")) == "ended without leaving an exit code"
