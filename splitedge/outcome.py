"""How a request ended, in words and in a record."""

from __future__ import annotations

import logging
import math

from splitedge.errors import CloudBusy, RequestError
from splitedge.events import Stage, StageKind
from splitedge.paths import Paths
from splitedge.policy import Decision, Gate, Option, Policy, Route
from splitedge.power import PowerModel
from splitedge.record import Record
from splitedge.request import NONE, Request
from splitedge.sender import Sender

_log = logging.getLogger("splitedge.engine")

#: What the reason of a request that a filter ended begins with.
FILTERED = "filtered"
#: Name in place of an option's where a filter answered the class that means nothing.
NOTHING = "nothing"


def answered(
    r: Request,
    now: float,
    option: int,
    confidence: float,
    policy: Policy | None,
    paths: Paths,
    power: PowerModel,
) -> Record:
    """The record of a request answered by `option`; without a policy it does not say why as planned."""
    record = _measured(r, now, paths, power)
    chosen = paths.options[option]
    record.option = paths.names[option]
    record.route = paths.routes[option]
    record.cut = chosen.cut or ""
    record.codec = chosen.codec or ""
    record.level = chosen.level if chosen.remote else -1
    record.exit = chosen.exit if chosen.exit is not None else -1
    record.confidence = confidence
    record.met = record.latency_s <= r.deadline_s
    record.degraded = option != r.target or r.broken
    if record.degraded:
        record.reason = _fell(r, record.option)
    elif policy is not None:
        record.reason = _meant(r, policy)
    return record


def filtered(
    r: Request, now: float, gate: Gate, confidence: float, paths: Paths, power: PowerModel
) -> Record:
    """The record of a request whose payload a filter kept from being sent. Not degraded: the option wanted
    has that filter.
    """
    record = _measured(r, now, paths, power)
    record.option = NOTHING if gate.exit is None else Option(Route.EXIT, exit=gate.exit).name
    record.route = Route.EXIT.value
    record.exit = -1 if gate.exit is None else gate.exit
    record.confidence = confidence
    record.met = record.latency_s <= r.deadline_s
    record.reason = (
        f"{FILTERED}: {gate.claim}, says the filter of {paths.options[r.encoded].name} with {confidence:.1%} "
        f"confidence, its threshold is {gate.threshold:.1%}"
    )
    return record


def failed(r: Request, now: float, error: RequestError, paths: Paths, power: PowerModel) -> Record:
    """The record of a request that ended in an error."""
    record = _measured(r, now, paths, power)
    record.error = type(error).__name__
    record.reason = str(error)
    return record


def typed(kind: type[RequestError], message: str, r: Request) -> RequestError:
    """The error of that kind, with what it carries."""
    if kind is CloudBusy:
        return CloudBusy(message, r.retry_after_s)
    return kind(message)


def stage_name(stage: Stage) -> str:
    """A stage, for messages."""
    if stage.kind is StageKind.EXIT:
        return f"exit {stage.number}"
    return "the local model" if stage.kind is StageKind.LOCAL else "the payload's encoding"


def why_late(r: Request, now: float, paths: Paths, sender: Sender) -> str:
    """Why the option wanted has given no answer by now."""
    waited = f"{now - r.t:.3f} s"
    if not paths.remote[r.target]:
        return f"the device did not finish {paths.options[r.target].name} within {waited}"
    if r.trouble:
        return f"no answer of the cloud within {waited} ({r.trouble})"
    if r.attempts == 0:
        state = "the payload was not ready" if sender.usable else sender.state
        return f"nothing could be sent within {waited} ({state})"
    return f"the cloud's reply did not arrive within {waited}"


def _fell(r: Request, name: str) -> str:
    note = r.note or r.trouble or "the route wanted gave no answer"
    by = {"local": "the local model"}.get(name, name.replace("exit:", "exit "))
    return f"{note}; answered by {by}"


def _meant(r: Request, policy: Policy) -> str:
    if r.forced is not None:
        return f"the caller asked for the route '{r.forced}'"
    assert r.obs is not None and r.decision is not None  # a route not forced was decided by the policy
    try:
        return policy.explain(r.obs, Decision(r.target, r.decision.why))
    except Exception:  # a plug-in's bug must not lose the answer that is in hand
        _log.exception("policy '%s' could not explain its decision", policy.name)
        return f"policy '{policy.name}' chose it and failed to explain why"


def _measured(r: Request, now: float, paths: Paths, power: PowerModel) -> Record:
    obs = r.obs
    return Record(
        request=r.id,
        t_s=r.t,
        rows=r.rows,
        deadline_s=r.deadline_s,
        planned=paths.names[r.planned] if r.planned != NONE else "",
        forced=r.forced is not None,
        latency_s=now - r.t,
        head_s=r.head_s,
        encode_s=r.encode_s,
        uplink_s=r.uplink_s,
        queue_s=r.queue_s,
        decode_s=r.decode_s,
        tail_s=r.tail_s,
        downlink_s=r.downlink_s,
        bytes_up=r.bytes_up,
        bytes_down=r.bytes_down,
        attempts=r.attempts,
        energy_j=power.joules(r.head_s + r.encode_s, r.bytes_up, r.bytes_down) + r.tail_j,
        goodput_bps=obs.goodput.mean if obs else math.nan,
        goodput_low_bps=obs.goodput.low if obs else math.nan,
        rtt_s=obs.rtt.mean if obs else math.nan,
        rtt_high_s=obs.rtt.high if obs else math.nan,
        battery=obs.battery if obs else math.nan,
    )


def route_names(paths: Paths) -> str:
    """The routes of a deployment, for messages."""
    return ", ".join(sorted({Route(option.route).value for option in paths.options}))
