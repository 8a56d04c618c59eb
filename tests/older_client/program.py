"""A program as users of byzerllm 0.1.223 wrote them. It runs in that release's own environment, never in pytest's.

    python program.py ADDRESS

Each function below is one thing that the published client can do. Each line on stdin is a call as JSON,
``[function, {arguments}]``, and is answered with a line on stdout, ``[what it returned, traceback or null]``.

(Annotations are evaluated here: the older client looks at those of a prompt function.)
"""

import asyncio
import importlib
import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydantic

# Type checkers know this project's byzerllm only.
byzerllm: Any = importlib.import_module("byzerllm")
client: Any = importlib.import_module("byzerllm.utils.client")

USER = [{"role": "user", "content": "hello"}]


class Person(pydantic.BaseModel):  # type: ignore[misc, unused-ignore]
    name: str


def connected(model: str) -> Any:
    llm = client.ByzerLLM()
    llm.setup_template(model, "auto").setup_default_model_name(model)
    return llm


def chat(model: str, **more: Any) -> dict[str, Any]:
    answer = connected(model).chat_oai(list(USER), **more)[0]
    return {"output": answer.output, "metadata": answer.metadata, "input": answer.input}


def stream(model: str, *, delta: bool) -> list[dict[str, Any]]:
    pieces = connected(model).stream_chat_oai(list(USER), delta_mode=delta)
    return [{"text": text, "metadata": vars(metadata)} for text, metadata in pieces]


def async_stream(model: str) -> list[str]:
    async def read() -> list[str]:
        pieces = connected(model).async_stream_chat_oai(list(USER), delta_mode=True)
        return [text async for text, _ in pieces]

    return asyncio.run(read())


def meta(model: str) -> dict[str, Any]:
    found: dict[str, Any] = connected(model).get_meta(model)
    return found


def embed(model: str, texts: list[str]) -> list[Any]:
    llm = client.ByzerLLM()
    return [answer.output for answer in llm.emb(model, client.LLMRequest(instruction=texts))]


def rerank(model: str, pairs: list[list[str]]) -> Any:
    return client.ByzerLLM().emb_rerank(model, pairs)[0].output


def response_class(model: str) -> str:
    answer = connected(model).chat_oai(list(USER), response_class=Person)[0]
    return str(answer.value.name)


def prompt(model: str) -> str:
    def greet(name: str) -> str:  # type: ignore[empty-body]
        """hello {{ name }}"""

    return str(byzerllm.prompt()(greet).with_llm(connected(model)).run("Bob"))


def callbacks(model: str) -> dict[str, Any]:
    llm, moments, tokens = connected(model), [], []

    def before(_llm: Any, _model: str, items: list[dict[str, Any]]) -> tuple[bool, None]:
        moments.append(f"before {items[0]['instruction']}")
        return True, None

    def after(_llm: Any, _model: str, results: list[dict[str, Any]]) -> tuple[bool, None]:
        moments.append(f"after {results[0]['predict']}")
        tokens.append(results[0]["metadata"]["input_tokens_count"])
        return True, None

    llm.add_event_callback(client.EventName.BEFORE_CALL_MODEL, before)
    llm.add_event_callback(client.EventName.AFTER_CALL_MODEL, after)
    llm.chat_oai(list(USER))
    return {"moments": moments, "tokens": tokens[0]}


def error(model: str, *, streamed: bool) -> dict[str, Any]:
    """The pieces that came before it, and its text."""
    llm, pieces = connected(model), []
    try:
        if streamed:
            for text, _ in llm.stream_chat_oai(list(USER), delta_mode=True):
                pieces.append(text)
        else:
            llm.chat_oai(list(USER))
    except Exception as raised:  # noqa: BLE001 - its class is what is asked for
        return {"kind": type(raised).__name__, "text": str(raised), "pieces": pieces}
    return {"kind": "", "text": "", "pieces": pieces}


def threads(model: str, count: int) -> dict[str, Any]:
    """As many chats at once as there are threads: what they answer, and the seconds that all took."""
    llm = connected(model)
    started = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        outputs = list(pool.map(lambda _: llm.chat_oai(list(USER))[0].output, range(count)))
    return {"outputs": outputs, "seconds": time.monotonic() - started}


CALLS = {
    f.__name__: f
    for f in (
        chat,
        stream,
        async_stream,
        meta,
        embed,
        rerank,
        response_class,
        prompt,
        callbacks,
        error,
        threads,
    )
}


def main(address: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the client prints this and that
    byzerllm.connect_cluster(address=address)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        call: Any = CALLS[name]
        try:
            outcome = [call(**arguments), None]
        except Exception:  # noqa: BLE001 - the test shows it
            outcome = [None, traceback.format_exc()]
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
