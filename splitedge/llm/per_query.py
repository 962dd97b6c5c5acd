"""Device or cloud for a whole query: by a router beforehand, or by a judge of the device's answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from splitedge.errors import ConfigError
from splitedge.llm.modes import Mode
from splitedge.llm.reading import answer_numbers, prompt_numbers
from splitedge.llm.router import QueryRouter, Routed
from splitedge.llm.token_model import WholeModel

if TYPE_CHECKING:
    from splitedge.llm.cascade import Judge
    from splitedge.llm.deployment import LanguageDeployment, Text
    from splitedge.llm.language_plan import LanguagePlan

#: Names that stand where a mode does.
ROUTE, CASCADE = "route", "cascade"


class _Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def routed(
    router: QueryRouter | None,
    local: WholeModel | None,
    tokenizer: _Tokenizer,
    prompt: str | Sequence[int],
) -> Routed:
    """Where a prompt goes, and why.

    Args:
        router: trained by `router_fit.fit_router`.
        local: the device's model, for a router that has it read the prompt.
        tokenizer: of the models.
        prompt: text, or ids.

    Raises:
        ConfigError: there is no router, or it wants a local model and there is none.
    """
    if router is None:
        raise ConfigError(
            "there is no query router: train one by splitedge.llm.router_fit.fit_router, then give it as "
            "router=... or by deployment.attach(Aids(router=...))"
        )
    text = prompt if isinstance(prompt, str) else tokenizer.decode(list(prompt))
    if not router.reads:
        return router(text)
    if local is None:
        raise ConfigError("this router has the device's model read the prompt, and there is none")
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    return router(text, prompt_numbers(local, ids))


def judge_of(plan: LanguagePlan) -> tuple[Judge, WholeModel]:
    """The judge and the local model that a cascade needs.

    Raises:
        ConfigError: one of them is missing.
    """
    judge, local = plan.aids.judge, plan.local
    if judge is None or local is None:
        raise ConfigError(
            "a cascade needs a local model and a judge: train one by splitedge.llm.cascade.fit_judge, then "
            "give it by deployment.attach(Aids(judge=...))"
        )
    return judge, local


def accepted(
    judge: Judge, local: WholeModel, prompt: Sequence[int], answer: Sequence[int], ended: bool
) -> tuple[bool, str]:
    """Whether the device's answer will do, and one readable sentence why.

    Args:
        judge, local: see `judge_of`.
        prompt, answer: ids.
        ended: whether the answer ended by itself.
    """
    if not answer:
        return False, "the device's answer is empty: the cloud answers anew"
    return judge.accepts(answer_numbers(local, list(prompt), list(answer), ended))


def cascade(deployment: LanguageDeployment, prompt: str | Sequence[int], how: dict[str, Any]) -> Text:
    """The device answers; the cloud anew where the judge finds that this will not do.

    Time and joules of both are counted. While the cloud is out of reach, `on_loss` says what becomes of an
    answer that was not accepted: `wait` for the cloud, or keep it (`local`), marked as degraded.

    Args:
        deployment: with a local model and a judge.
        prompt: text, or ids.
        how: as for `LanguageDeployment.generate`; its `mode` is not looked at.

    Raises:
        ConfigError: there is no judge or no local model.
        RequestError: see `LanguageDeployment.generate`.
    """
    judge, local = judge_of(deployment.plan)
    ids = deployment.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    mine = deployment.generate(ids, **{**how, "mode": Mode.LOCAL})
    kept, why = accepted(judge, local, ids, mine.ids, mine.finish == "stop")
    if kept:
        return replace(mine, why=why)
    if how.get("on_loss") == "local" and not deployment.up:
        return replace(mine, why=why, degraded=True, reason="not accepted, but the cloud is out of reach")
    left = max(how.get("deadline_s", math.inf) - mine.total_s, 0.0)
    anew = deployment.generate(ids, **{**how, "mode": Mode.STREAM, "deadline_s": left})
    return replace(
        anew,
        why=why,
        energy_j=anew.energy_j + mine.energy_j,
        ttft_s=anew.ttft_s + mine.total_s,
        total_s=anew.total_s + mine.total_s,
    )
