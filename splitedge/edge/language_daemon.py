"""The edge daemon of a language model: a runtime behind the OpenAI-compatible API, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from splitedge.edge.announcing import announce
from splitedge.edge.language import LanguageRuntime
from splitedge.edge.openai_api import OpenAiApi, Writer
from splitedge.edge.settings import EdgeSettings
from splitedge.llm.text_records import TextRecordStore
from splitedge.until_signal import until_signal

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
    with until_signal() as told_to_end:
        try:
            await runtime.start()
            await api.server.start()
            announce(api.server, settings, ready)
            await told_to_end()
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
