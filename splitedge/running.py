"""A plan at work: its edge half on a thread of its own, and the link to its cloud half."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitedge.edge.link import Link, ZmqLink
from splitedge.edge.runtime import EdgeRuntime
from splitedge.edge.settings import EdgeSettings
from splitedge.edge.threaded import ThreadedRuntime
from splitedge.engine import Engine
from splitedge.errors import ConfigError, LinkError, Rejected
from splitedge.keys import load_keys, trusted_key
from splitedge.loopback import Loopback
from splitedge.placing import device_named
from splitedge.plan import Plan
from splitedge.policy import Policy
from splitedge.power import power_profile
from splitedge.record import Record
from splitedge.records import RecordStore
from splitedge.settings import EngineSettings

log = logging.getLogger(__name__)

#: Seconds the first request waits for the link to come up, so that it is not answered without it.
FIRST_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Around:
    """What a deployment runs with; see `deploy`."""

    cloud: str | None = None
    keys: Path | None = None
    records: Path | None = None
    settings: EngineSettings | None = None
    power: str = "none"
    device: str = "cpu"


class Running:
    """Starts on construction. Methods may be called from any thread.

    Args:
        plan: with the edge's half at least.
        policy: chooses among its options.
        around: link, records, settings.
        here: whether the cloud's half runs in this process where no other is named.
        digest: gives the bundle's digest; asked only where another side must agree on it.
        on_record: called with every request's record, on the runtime's thread.

    Raises:
        BundleError: a server is named, and the plan can not be saved for it to serve.
        ConfigError: keys are missing, or the record file or the device can not be used.
    """

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        around: Around,
        *,
        here: bool,
        digest: Callable[[], str],
        on_record: Callable[[Record], None],
    ) -> None:
        device = device_named(around.device)
        # Nobody else sees the digest of an in-process cloud, so a plan that can't be saved works too.
        name = secrets.token_hex(32) if around.cloud is None and here else digest()
        self.link: Link | None = None
        if around.cloud is not None:
            self.link = _server(around.cloud, around.keys)
        elif here:
            self.link = Loopback(plan.cloud(name, device))
        engine = Engine(plan.options, policy, settings=around.settings, power=power_profile(around.power))
        store = None if around.records is None else RecordStore(around.records)
        runtime = EdgeRuntime(
            plan.edge(name, device), engine, self.link, settings=_limits(around.cloud), records=store
        )
        runtime.listeners.append(on_record)
        self.threaded = ThreadedRuntime(runtime)
        if self.link is not None:
            self._wait()

    def _wait(self) -> None:
        """Requests get by without the cloud, and say why; so its absence is no error here."""
        try:
            self.threaded.connected(FIRST_WAIT_S)
        except LinkError as error:
            log.warning("the cloud is not there yet: %s", error)

    def plug(self, reason: str | None) -> None:
        """Unplug the in-process cloud for `reason`; plug it in again by None.

        Raises:
            ConfigError: the cloud does not run in this process.
        """
        if not isinstance(self.link, Loopback):
            raise ConfigError("an outage can be played for a cloud in this process only")
        self.threaded.submit(_plug(self.link, reason)).result()

    def close(self) -> None:
        """Let requests in flight end, stop both halves, leave no thread."""
        if isinstance(self.link, Loopback):
            with contextlib.suppress(Rejected):  # closed already, or opened before a fork: not ours to stop
                self.threaded.submit(_shut(self.threaded.runtime, self.link)).result()
        self.threaded.close()


def _limits(cloud: str | None) -> EdgeSettings:
    """Within a process there is nobody to be protected from, so messages may be large."""
    if cloud is None:
        return EdgeSettings(max_message=1 << 30, max_unanswered=1 << 32)
    return EdgeSettings(cloud=cloud)


def _server(endpoint: str, keys: Path | None) -> ZmqLink:
    settings = EdgeSettings(cloud=endpoint)
    if keys is None:
        return ZmqLink(endpoint, settings=settings)
    return ZmqLink(endpoint, load_keys(keys), trusted_key(keys), settings)


async def _plug(link: Loopback, reason: str | None) -> None:
    if reason is None:
        link.connect()
    else:
        link.disconnect(reason)


async def _shut(runtime: EdgeRuntime, link: Loopback) -> None:
    """Requests in flight may still need the cloud: let them end, then stop it and wait for its thread."""
    await runtime.drain()
    link.close()
    await link.wait_closed()
