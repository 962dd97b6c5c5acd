"""The edge daemon of a language model: a runtime behind the OpenAI-compatible API, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable

from splitedge.edge.language import LanguageRuntime
from splitedge.edge.openai_api import OpenAiApi, Writer
from splitedge.edge.settings import EdgeSettings
from splitedge.keys import is_loopback
from splitedge.llm.text_records import TextRecordStore

log = logging.getLogger(__name__)


async def run_language_edge(
    writer: Writer,
    runtime: LanguageRuntime,
    settings: EdgeSettings,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, let texts under way end (`settings.drain_s`) and return.

    Args:
        writer: decides how texts are written.
        runtime: writes them; not yet started.
        settings: address, caps, records.
        ready: called with `host:port` once HTTP is answered.

    Raises:
        ConfigError: the address can not be listened on.
        RecordError: the records can not be written.
        LinkError: the cloud's endpoint makes no sense.
    """
    records = TextRecordStore(settings.records) if settings.records is not None else None
    api = OpenAiApi(writer, runtime, settings, records)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await runtime.start()
        await api.server.start()
        if not is_loopback(f"tcp://{settings.http}"):
            log.warning(
                "HTTP on %s can be reached from other machines and asks nobody who they are", settings.http
            )
        if ready is not None:
            ready(api.server.url.removeprefix("http://"))
        gc.collect()
        gc.freeze()
        await stop.wait()
        api.draining = True
        log.info("shutting down: %d texts under way", api.in_flight)
        end = time.monotonic() + settings.drain_s
        while api.in_flight and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if api.in_flight:
            log.warning("%d texts had not ended after %g s", api.in_flight, settings.drain_s)
    finally:
        await runtime.close()
        await api.server.close()
        if records is not None:
            records.close()
        gc.unfreeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
