"""What is said of a worker that did not start."""

from __future__ import annotations

from byzerllm.control.ending import failure, how, without_tracebacks
from byzerllm.engines import engine
from byzerllm.engines.llama_cpp import LlamaCpp
from byzerllm.runtime.base import Exit, OutOfMemory

LLAMA = engine("llama_cpp")
GIB = 1024**3

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
    error = failure("Worker 0", LLAMA, Exit(1, log))
    assert error.message.startswith("This llama.cpp does not know the architecture novel")
    assert error.message.endswith("Worker 0 ended with exit code 1. Its last log lines:\nline 47\nline 48\nline 49")
    assert error.details["log"] == log


def test_without_a_known_cause_there_are_more_lines() -> None:
    message = failure("Worker 1", LLAMA, Exit(3, "".join(f"line {n}\n" for n in range(50)))).message
    assert message.startswith("Worker 1 ended with exit code 3. Its last log lines:\nline 40\n")
    assert failure("Worker 1", LLAMA, Exit(3, "")).message == "Worker 1 ended with exit code 3. Its log is empty."


def test_a_line_that_repeats_the_cause_is_not_shown_and_a_long_one_is_cut() -> None:
    class Said(LlamaCpp):
        def cause(self, tail: str) -> str | None:
            return "no memory left"

    message = failure("Worker 1", Said(), Exit(2, f"{'x' * 1000}\nbyzerllm: cause: no memory left\n")).message
    assert message == f"no memory left. Worker 1 ended with exit code 2. Its last log lines:\n{'x' * 236} ..."


def test_beside_a_cause_what_was_shown_as_progress_is_left_out() -> None:
    class Hosted(LlamaCpp):
        def phase(self, line: str) -> str | None:
            return line.partition("phase: ")[2] or None

        def cause(self, tail: str) -> str | None:
            return "It cannot load this" if "oh" in tail else None

    log = "byzerllm: phase: importing libraries\nbyzerllm: phase: loading weights\n"
    assert failure("Worker 1", Hosted(), Exit(2, f"{log}oh\n")).message.endswith("Its last log lines:\noh")
    assert failure("Worker 1", Hosted(), Exit(2, log)).message.endswith("phase: loading weights"), "nobody knows more"


def test_memory_that_ran_out_is_the_cause_with_its_numbers() -> None:
    log = "unknown model architecture: 'novel'\nloading weights\n"
    message = failure("Worker 0", LLAMA, Exit(-9, log, out_of_memory=OutOfMemory(6 * GIB, 8 * GIB))).message
    assert message.startswith(
        "Out of memory: the kernel ended the process, which had 6.0 GiB; there are 8.0 GiB for all. Take a smaller or "
        "quantised model, a shorter context or fewer workers. Worker 0 ended by signal 9. Its last log lines:\n"
    )
    message = failure("Worker 0", LLAMA, Exit(-9, log, out_of_memory=OutOfMemory(0, 8 * GIB))).message
    assert message.startswith("Out of memory: the kernel ended the process; there are 8.0 GiB for all.")


def test_memory_that_ran_out_for_another_process_is_only_mentioned() -> None:
    """Such as one that the worker itself had started; but it may be anybody's."""
    message = failure("Worker 0", LLAMA, Exit(1, "bye", out_of_memory=OutOfMemory(GIB, 8 * GIB))).message
    assert message.startswith(
        "Worker 0 ended with exit code 1 after the kernel had killed a process for lack of memory (8.0 GiB for all)."
    )


def test_how_a_process_ended() -> None:
    assert how(Exit(3, "")) == "ended with exit code 3"
    assert how(Exit(-15, "")) == "ended by signal 15"
    assert how(Exit(None, "")) == "ended without leaving an exit code"
    assert how(Exit(-9, "")).startswith("ended by signal 9 (killed from outside; the kernel does so")
    assert how(Exit(-9, "", out_of_memory=OutOfMemory(0, GIB))) == "ended by signal 9"
    assert how(Exit(None, "", out_of_memory=OutOfMemory(0, GIB))).endswith("for lack of memory (1.0 GiB for all)")
