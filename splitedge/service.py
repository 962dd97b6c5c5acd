"""A bundle and settings made into a running edge daemon: what stands behind `splitedge edge`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from splitedge.bundle import load_plan
from splitedge.config import Settings
from splitedge.edge.daemon import run_edge
from splitedge.edge.link import ZmqLink
from splitedge.edge.settings import EdgeSettings
from splitedge.engine import Engine
from splitedge.estimate import LinkEstimator
from splitedge.keys import load_keys, trusted_key
from splitedge.placing import device_named
from splitedge.policy_setup import ready_policy
from splitedge.power import power_profile


async def run_edge_daemon(
    bundle: Path | str, settings: Settings, ready: Callable[[str], None] | None = None
) -> None:
    """Load the edge's half of a bundle and serve it until SIGTERM or SIGINT.

    Args:
        bundle: directory that `Deployment.save` wrote.
        settings: of edge, engine and link; `edge.policy` None takes the bundle's own policy.
        ready: called with `host:port` once HTTP is answered.

    Raises:
        BundleError: the bundle is damaged or foreign.
        ConfigError: keys are missing or unsafe, or an address or device can not be used.
        PolicyError: the policy does not fit the bundle's routes.
    """
    device = device_named(settings.edge.device)
    plan, found = await asyncio.to_thread(load_plan, bundle, "edge")
    policy, _ = ready_policy(settings.edge.policy or plan.policy, plan.options, plan.evidence)
    engine = Engine(
        plan.options,
        policy,
        settings=settings.engine,
        link=LinkEstimator(settings.link),
        power=power_profile(settings.edge.power),
    )
    await run_edge(plan.edge(found.digest, device), engine, cloud_link(settings.edge), settings.edge, ready)


def cloud_link(edge: EdgeSettings) -> ZmqLink | None:
    """The link that the settings describe, not yet started; None where no cloud is set.

    Raises:
        ConfigError: the keys can not be read, or the cloud is on another machine and there are none.
    """
    if edge.cloud is None:
        return None
    if edge.keys is None:
        return ZmqLink(edge.cloud, settings=edge)
    return ZmqLink(
        edge.cloud, load_keys(edge.keys, edge.key_name), trusted_key(edge.keys, edge.cloud_key), edge
    )
