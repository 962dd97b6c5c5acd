"""A bundle and settings made into a running edge daemon: what stands behind `splitedge edge`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from splitedge import sealed
from splitedge.bundle import load_cloud, load_plan
from splitedge.cloud.desk import LanguageHalf
from splitedge.config import Settings
from splitedge.edge.daemon import run_edge
from splitedge.edge.link import ZmqLink
from splitedge.edge.openai_settings import patience_of
from splitedge.edge.settings import EdgeSettings
from splitedge.engine import Engine
from splitedge.errors import ConfigError
from splitedge.estimate import LinkEstimator
from splitedge.keys import load_keys, trusted_key
from splitedge.placing import device_named
from splitedge.policy_setup import ready_policy
from splitedge.power import power_profile
from splitedge.segments import CloudSegments


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
    if await asyncio.to_thread(sealed.kind, bundle) == "language":
        await _run_language(bundle, settings, ready)
        return
    if settings.edge.black_box is not None:
        raise ConfigError("edge.black_box is for the bundle of a language model")
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


async def _run_language(bundle: Path | str, settings: Settings, ready: Callable[[str], None] | None) -> None:
    from splitedge.edge.language_daemon import run_language_edge
    from splitedge.llm.deployment import load_deployment

    edge = settings.edge
    if edge.policy is not None:
        raise ConfigError("a language model takes no policy; its modes are set by edge.language.mode")
    if edge.black_box is not None and edge.cloud is not None:
        raise ConfigError("edge.cloud and edge.black_box are both set; a language model has one cloud")
    deployment = await asyncio.to_thread(
        load_deployment, bundle, "edge", cloud=edge.cloud, keys=edge.keys, power=edge.power,
        patience=patience_of(edge), black_box=edge.black_box,
    )  # fmt: skip
    runtime = deployment.runtime(cloud_link(edge), edge)
    await run_language_edge(deployment, runtime, edge, ready)


def load_clouds(bundles: Sequence[Path], device: str) -> tuple[list[CloudSegments], list[LanguageHalf]]:
    """The cloud's halves of bundles, models and language models.

    Raises:
        BundleError: one is damaged or foreign; the message names the file.
        ConfigError: there is no such device here.
    """
    models: list[CloudSegments] = []
    languages: list[LanguageHalf] = []
    for path in bundles:
        if sealed.kind(path) == "language":
            from splitedge.llm.deployment import load_deployment

            languages.append(load_deployment(path, "cloud", device=device).cloud_half)
        else:
            models.append(load_cloud(path, device=device))
    return models, languages


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
