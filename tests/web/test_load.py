"""Many read while a job runs, and none of them notices."""

import asyncio
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn
from web_requests import PATIENCE, TOKEN

from patchclamp.web.app import make_app

CLIENTS, REQUESTS, PAUSE = 200, 5, 1.0
PATHS = ("/lens", "/models", "/runs", "/api/status", "/circuits", "/static/base.js", "/api/runs")
MEDIAN = 0.1
"""Seconds for a page."""


@pytest.fixture
def port(bench):
    """A real server on a free port."""
    config = uvicorn.Config(make_app(bench, TOKEN), host="127.0.0.1", port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


async def read(port, path):
    """One request on a connection of its own: status and seconds."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    content = await reader.read()
    writer.close()
    return int(content.split(b" ", 2)[1]), time.monotonic() - began


async def client(port, number):
    """Someone who reads pages, a second each."""
    await asyncio.sleep(PAUSE * number / CLIENTS)
    seen = []
    for i in range(REQUESTS):
        seen.append(await read(port, PATHS[(number + i) % len(PATHS)]))
        await asyncio.sleep(PAUSE)
    return seen


async def crowd(port):
    return [one for seen in await asyncio.gather(*(client(port, i) for i in range(CLIENTS))) for one in seen]


@pytest.mark.slow
def test_two_hundred_read_while_a_job_runs(bench, port):
    stop = threading.Event()

    def work(payload, progress):
        """Python and torch at once, as methods are."""
        import torch

        a = torch.rand(300, 300)
        while not stop.is_set():
            progress.check()
            a = (a @ a).softmax(-1)
            sum(i * i for i in range(2000))

    bench.works["ask"] = work
    bench.queue.submit("ask", "busy", {}, "me")
    with ThreadPoolExecutor(1) as apart:  # a browser of other tests may have its loop in this thread
        try:
            seen = apart.submit(lambda: asyncio.run(crowd(port))).result()
        finally:
            stop.set()
    assert {status for status, _ in seen} == {200}
    assert len(seen) == CLIENTS * REQUESTS
    assert statistics.median(seconds for _, seconds in seen) < MEDIAN * PATIENCE
