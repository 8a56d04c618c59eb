"""The relay of an upstream with a format of its own for speech or images: its answer is decoded as it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import quote, urlsplit

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.gateway.call import ANSWER_LIMIT, Call, answer_headers, check_held, upstream_error
from byzerllm.gateway.http import Header, send_bytes
from byzerllm.relay.connection import Connection
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import header_lines, parse_target, request_head, standard_headers
from byzerllm.routing.worker import Media, Worker
from byzerllm.wire.media import Download, MediaDecoder


async def relay_media(pool: Pool, call: Call, worker: Worker, upstream: Media, extra: list[Header]) -> str:
    """One attempt; returns the outcome to count.

    Raises:
        InvalidInput: the vendor cannot do what the request asks for.
        UpstreamError: it failed; ``call.first_byte`` tells whether the client has got some of the answer.
    """
    data = await upstream.request(upstream.wire.request(call.request, upstream.vendor))
    connection = await pool.exchange(upstream.target, data, upstream.timeouts)
    try:
        if connection.status != 200:
            raise await upstream_error(connection, upstream)
        call.instance.stats.queue_wait.add(call.waited)
        _, headers = answer_headers(call, worker, connection, extra)
        decoder = upstream.wire.decoder(call.request, int(time.time()))
        headers.append((b"content-type", decoder.content_type))
        await _relay(call, worker, connection, decoder, headers)
        try:
            rest = decoder.close()
        except UpstreamBroken as error:  # it came, and is none
            error.was_answered = True
            raise
    finally:
        pool.give_back(connection)
    if isinstance(rest, Download):
        rest = rest.finish(await _fetch_all(pool, upstream, rest.urls))
    if not call.first_byte and not rest:
        raise UpstreamBroken(f"{upstream.target} answered with nothing.")
    call.instance.succeeded(worker)
    call.over = True
    if call.first_byte:
        await call.send({"type": "http.response.body", "body": rest})
    else:
        call.first_byte = time.monotonic()
        await send_bytes(call.send, 200, rest, headers)
    return "ok"


async def _relay(
    call: Call, worker: Worker, connection: Connection, decoder: MediaDecoder, headers: list[Header]
) -> None:
    """Up to the end of the vendor's body. What fails before the first piece may still be tried elsewhere."""
    held = 0
    while chunk := await connection.read():
        worker.progress += 1
        piece = decoder.feed(chunk)
        if not piece:
            held += len(chunk)
            check_held(worker.upstream, held)
            continue
        held = 0
        if not call.first_byte:
            call.first_byte = time.monotonic()
            await call.send({"type": "http.response.start", "status": 200, "headers": headers})
        await call.send({"type": "http.response.body", "body": piece, "more_body": True})


async def _fetch_all(pool: Pool, upstream: Media, urls: Sequence[str]) -> list[bytes]:
    files: list[bytes] = []
    left = ANSWER_LIMIT
    for url in urls:
        files.append(await _fetch(pool, upstream, url, left))
        left -= len(files[-1])
    return files


async def _fetch(pool: Pool, upstream: Media, url: str, limit: int) -> bytes:
    """A file that the vendor's answer names. No key is sent: it lies on another server."""
    near = upstream.target
    try:
        target, path = parse_target(url, proxy=near.proxy, local_address=near.local_address, ca_file=near.ca_file)
    except InvalidInput as error:
        _lost(error.message)
    query = quote(urlsplit(url).query, safe="/%!$&'()*+,;=:@?")
    lines = header_lines(standard_headers(target))
    head = request_head("GET", target, f"{path or '/'}{'?' if query else ''}{query}", lines)
    try:
        connection = await pool.exchange(target, head + b"\r\n", upstream.timeouts)
        try:
            content = await connection.read_all(limit)
            status = connection.status
        finally:
            pool.give_back(connection)
    except UpstreamError as error:
        _lost(error.message)
    if status != 200:
        _lost(f"{target} answered with status {status}")
    if len(content) >= limit:
        _lost(f"it is more than the {ANSWER_LIMIT // (1024 * 1024)} MiB that an answer may have")
    return content


def _lost(why: str) -> NoReturn:
    raise UpstreamError(
        f"The vendor made the file, but it could not be fetched: {why.rstrip('.')}.",
        was_answered=True,
    ) from None
