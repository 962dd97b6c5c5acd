"""Language models between a device and a cloud: equal texts, exits, `auto`, many contexts, overhead.

Parts (`--only lossless,exits,auto,paced,contexts,overhead,rejection`; all without it). Without stories260K at
hand a random model takes its place, and figures on agreement say nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _llm_exits import beside_stream, exit_curve, pair_curve
from _llm_models import Bytes, SlowCloud, draft_of, llama, own_text, shakespeare, stories
from _llm_rejection import rejection
from common import Report, console, show_machine
from rich.table import Table

from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import LanguageLimits, ServerSettings
from splitedge.edge.language import LanguageRuntime
from splitedge.edge.link import ZmqLink
from splitedge.edge.settings import EdgeSettings
from splitedge.llm.deployment import CloudHalf, LanguageDeployment, deploy_language
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.gate_fit import GateSchedule
from splitedge.llm.generation import Wish
from splitedge.llm.modes import Mode, Way
from splitedge.llm.plan import Costs, break_even_rtt
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.token_model import WholeModel
from splitedge.loopback import APART, Loopback
from splitedge.sim.curves import Rates
from splitedge.sim.language import simulate_texts
from splitedge.sim.language_scenario import LanguageScenario
from splitedge.sim.link import Channel
from splitedge.sim.pacer import Pacer, precise_loop

NONE: frozenset[int] = frozenset()
RTTS_MS = (2, 10, 30, 100, 300)
MBPS = (0.5, 2.0, 10.0, 50.0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=17)


class Bench:
    """What the parts share."""

    def __init__(self, quick: bool, report: Report) -> None:
        self.quick, self.report = quick, report
        real = stories()
        if real is None:
            report.notes.append("stories260K is not at hand: a random model took its place")
        self.target = real if real is not None else llama(64, 5, 4, 128, 512, 512, 0)
        self.draft = draft_of(self.target, 128 if quick else 768, 1 if quick else 4, "draft")
        self.texts = own_text(self.target, 200, 16, 23)

    def prompts(self, count: int) -> list[list[int]]:
        """Beginnings of the target's own texts, 4 to 12 ids."""
        return [self.texts[i, : 4 + i % 9].tolist() for i in range(count)]

    def evaluated(self) -> LanguageEvaluation:
        """Target and draft on prompts."""
        with deploy_language(self.target, Bytes(), local=self.draft) as pair:
            count, length = (8, 24) if self.quick else (40, 64)
            return pair.evaluate(self.prompts(count), max_tokens=length, stops=NONE, progress=False)


def lossless(bench: Bench) -> None:
    """`spec` writes the cloud's text: every prompt by every k, greedy and sampled, calm and with cuts."""
    count, most, drafts = (4, 12, (1, 3, 8)) if bench.quick else (200, 20, tuple(range(1, 9)))
    prompts = bench.prompts(count)
    alone = WholeModel(bench.target)
    table = Table(title="spec: texts unlike the cloud's", title_justify="left")
    for column in ("", "texts", "unlike", "outages", "drafts kept"):
        table.add_column(column, justify="right")
    with deploy_language(bench.target, Bytes(), local=bench.draft) as pair:
        for how, cut in itertools.product((Sampling(), SAMPLED), (False, True)):
            wanted = []
            for prompt in prompts:
                ids = list(prompt)
                alone.forget()
                for _ in range(most):
                    ids.append(choose(alone.step(ids).logits, len(ids), how))
                wanted.append(tuple(ids[len(prompt) :]))
            name = f"{'greedy' if how.greedy else 'sampled'}, {'link cut' if cut else 'calm'}"
            written, unlike, outages, accepted, judged = 0, 0, 0, 0, 0
            for k in drafts:
                way = Way(Mode.SPEC, drafts=k, adapt=False)
                for begin in range(0, count, 10):
                    some = range(begin, min(begin + 10, count))
                    with _cuts(pair, cut) as number:
                        streams = [
                            pair.stream(prompts[i], max_tokens=most, way=way, sampling=how, stops=NONE)
                            for i in some
                        ]
                        results = [stream.result() for stream in streams]
                    outages += number()
                    written += len(results)
                    unlike += sum(tuple(r.ids) != wanted[i] for i, r in zip(some, results, strict=True))
                    accepted += sum(r.accepted for r in results)
                    judged += sum(r.proposed for r in results)
            table.add_row(name, f"{written}", f"{unlike}", f"{outages}", f"{accepted / max(judged, 1):.1%}")
            bench.report.add(f"spec, {name}: texts written", written, "texts")
            bench.report.add(f"spec, {name}: texts unlike the cloud's", unlike, "texts", at_most=0)
            if cut:
                bench.report.add(f"spec, {name}: outages", outages, "outages", at_least=1)
    console.print(table)


@contextmanager
def _cuts(pair: LanguageDeployment, wanted: bool) -> Iterator[Callable[[], int]]:
    """Cuts the link for 5 ms every 20 ms meanwhile; the value says how often."""
    ended, number = threading.Event(), itertools.count()

    def cut() -> None:
        while not ended.wait(0.015):
            pair.outage("the benchmark cut it")
            next(number)
            time.sleep(0.005)
            pair.outage(None)

    thread = threading.Thread(target=cut, daemon=True)
    if wanted:
        thread.start()
    done = [0]
    try:
        yield lambda: done[0]
    finally:
        ended.set()
        if wanted:
            thread.join()
        done[0] = next(number)


def exits(bench: Bench) -> None:
    """Cloud tokens saved against agreement, and the time of a text beside `cloud_stream`."""
    schedule = (
        ExitSchedule(texts=64, length=48, epochs=1, progress=False)
        if bench.quick
        else ExitSchedule(progress=False)
    )
    count, length = (12, 24) if bench.quick else (60, 64)
    rtts, rates = ((10, 300), (2.0,)) if bench.quick else (RTTS_MS, MBPS)
    texts = 6 if bench.quick else 30
    cases = [("stories260K", bench.target, bench.draft, bench.prompts(count))]
    trained = None if bench.quick else shakespeare(400)
    if bench.quick:
        bench.report.notes.append("the byte-level model was left out, to be quick")
    elif trained is None:
        bench.report.notes.append("no text at hand: no model was trained on the spot")
    else:
        model, held = trained
        at = torch.linspace(0, len(held) - 40, count).long().tolist()
        small = draft_of(model, 384, 4, "bytes-draft")
        cases.append(("bytes", model, small, [held[i : i + 32].tolist() for i in at]))
    gate = GateSchedule(texts=64, length=48) if bench.quick else GateSchedule()
    for name, model, small, prompts in cases:
        pair_curve(bench.report, name, model, small, prompts, length, gate)
        judged = exit_curve(bench.report, name, model, (2, 4), prompts, length, schedule)
        beside_stream(bench.report, name, judged, rtts, rates, texts)


def _scenario(
    evaluation: LanguageEvaluation, folder: Path, rtt_ms: float, mbps: float, texts: int, way: dict
) -> dict:
    file = folder / f"{mbps}.csv"
    file.write_text(f"t_s,mbps\n0,{mbps}\n60,{mbps}\n")
    draft = float(np.median(evaluation.seconds[evaluation.line("local")]))
    scenario = LanguageScenario.parse({
        "evaluation": "none.npz", "channel": {"up": str(file), "rtt_ms": rtt_ms}, "way": way,
        "user": {"texts": texts, "think_s": 1.0},
        "device": {"slower": 0.010 / draft}, "cloud": {"slower": 0.060 / evaluation.pass_s(1, 1)},
    }, folder / "scenario.toml")  # fmt: skip
    found = simulate_texts(scenario, evaluation=evaluation)
    # The first text is left out for all: nothing of the cloud has been measured by then.
    return {"total": float(found.columns["total_s"][1:].mean()), "modes": found.score().modes}


def auto(bench: Bench) -> None:
    """`auto` beside the best fixed mode, simulated: a draft of 10 ms, a pass of 60 ms."""
    evaluation = bench.evaluated()
    console.print(str(evaluation), highlight=False)
    texts = 6 if bench.quick else 30
    rtts, rates = ((10, 300), (2.0,)) if bench.quick else (RTTS_MS, MBPS)
    ways = {"stream": {"mode": "cloud_stream"}}
    ways |= {f"spec {k}": {"mode": "spec", "drafts": k, "adapt": False} for k in (1, 2, 3, 4, 6, 8)}
    ways |= {"spec 8, adapting": {"mode": "spec", "drafts": 8}}
    table = Table(title="seconds a text, simulated", title_justify="left")
    for column in ("RTT ms", "Mbit/s", "stream", "best spec", "auto", "of the best", "auto's modes"):
        table.add_column(column, justify="right")
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for rtt in rtts:
            for mbps in rates:
                run = {n: _scenario(evaluation, Path(scratch), rtt, mbps, texts, w) for n, w in ways.items()}
                chosen = _scenario(evaluation, Path(scratch), rtt, mbps, texts, {"mode": "auto"})
                best = min(run, key=lambda n: run[n]["total"])
                spec = min((n for n in run if n != "stream"), key=lambda n: run[n]["total"])
                ratio = chosen["total"] / run[best]["total"]
                worst = max(worst, ratio)
                shown = ", ".join(f"{n} {m}" for m, n in chosen["modes"].items())
                table.add_row(
                    f"{rtt}", f"{mbps:g}", f"{run['stream']['total']:.2f}",
                    f"{run[spec]['total']:.2f} ({spec})", f"{chosen['total']:.2f}", f"{ratio:.3f}", shown,
                )  # fmt: skip
    console.print(table)
    bench.report.add("auto over the best fixed mode, worst cell, simulated", worst, "ratio", at_most=1.05)


def paced(bench: Bench) -> None:
    """`spec` and `cloud_stream` through the pacer: the round trip at which both take the same."""
    evaluation = bench.evaluated()
    texts, length = (1, 12) if bench.quick else (6, 32)
    rtts = (10,) if bench.quick else RTTS_MS
    survival = evaluation.survival()
    found: dict[tuple[str, int], float] = {}
    draft_s = math.nan
    table = Table(title="ms a token through the pacer, 10 Mbit/s, pass of 60 ms", title_justify="left")
    for column in ("RTT ms", "stream", "spec of 4", "auto", "auto over the best", "auto's modes"):
        table.add_column(column, justify="right")
    worst = 0.0
    for rtt in rtts:
        times, modes, draft_s = _through_pacer(bench, evaluation, rtt, texts, length)
        for name, seconds in times.items():
            found[name, rtt] = seconds
        ratio = times["auto"] / min(times["stream"], times["spec"])
        worst = max(worst, ratio)
        cells = [f"{1e3 * times[n] / length:.1f}" for n in ("stream", "spec", "auto")]
        table.add_row(f"{rtt}", *cells, f"{ratio:.3f}", ", ".join(modes))
    console.print(table)
    costs = Costs(
        0.0, 10e6, 10e6, SlowCloud.fixed_s + SlowCloud.row_s, SlowCloud.row_s, draft_s,
        verify_slope=SlowCloud.row_s / (SlowCloud.fixed_s + SlowCloud.row_s), survival=survival,
    )  # fmt: skip
    bench.report.add("break-even RTT of spec of 4: predicted", break_even_rtt(costs, 4), "s")
    bench.report.add("break-even RTT of spec of 4: measured", _crossing(found, rtts), "s")
    bench.report.add("auto over the best of two, worst RTT, through the pacer", worst, "ratio", at_most=1.05)


def _crossing(found: dict[tuple[str, int], float], rtts: tuple[int, ...]) -> float | None:
    """Where the difference of both straight lines between measured points is 0."""
    lead = [found["stream", rtt] - found["spec", rtt] for rtt in rtts]
    for i in range(len(rtts) - 1):
        if lead[i] > 0 >= lead[i + 1]:
            share = lead[i] / (lead[i] - lead[i + 1])
            return (rtts[i] + share * (rtts[i + 1] - rtts[i])) / 1e3
    return None


def _through_pacer(
    bench: Bench, evaluation: LanguageEvaluation, rtt_ms: int, texts: int, length: int
) -> tuple[dict[str, float], list[str], float]:
    """Mean seconds a text, and auto's modes; edge and server in this process, TCP and the pacer between."""
    deployment = deploy_language(bench.target, Bytes(), local=bench.draft)
    plan, digest = deployment.plan, secrets.token_hex(32)
    half = plan.cloud(digest)
    slow = {lane: SlowCloud(plan.head, plan.tail, plan.anatomy) for lane in half.models}
    channel = Channel(Rates(np.array([0.0]), np.array([10e6]), 60.0), rtt_ms / 1e3)

    async def run() -> tuple[dict[str, float], list[str], float]:
        settings = ServerSettings(listen="tcp://127.0.0.1:0", http="")
        server = CloudServer([], settings, [CloudHalf(digest, slow)])
        await server.start()
        async with Pacer("tcp://127.0.0.1:0", server.endpoint, channel, channel) as pacer:
            link = ZmqLink(pacer.address, None, None, EdgeSettings(cloud=pacer.address))
            runtime = LanguageRuntime(plan.edge(digest), link)
            await runtime.start()
            await runtime.connected(10.0)
            await asyncio.sleep(2 * rtt_ms / 1e3 + 0.1)
            deployment._running = _Borrowed(runtime)  # choose() asks the runtime that is measured here
            deployment.evaluation = evaluation
            times: dict[str, list[float]] = {"stream": [], "spec": [], "auto": []}
            modes = []
            for i, prompt in enumerate(bench.prompts(texts + 1)):
                for name in times:
                    way = Way(Mode.SPEC, drafts=4, adapt=False) if name == "spec" else Way(Mode.STREAM)
                    if name == "auto":
                        best = deployment.choose(len(prompt), length).best
                        way = Way(best.mode, drafts=best.drafts or 4)
                    stream = runtime.write(Wish(tuple(prompt), length), way)
                    async for _ in stream:
                        pass
                    if i:  # the first round warms up
                        times[name].append(stream.tally.ended_s)
                        modes += [str(way.mode)] if name == "auto" and str(way.mode) not in modes else []
            deployment._running = None
            draft = runtime.draft_s
            await runtime.close()
        await server.stop()
        return {name: statistics.fmean(took) for name, took in times.items()}, modes, draft

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(run())


class _Borrowed:
    """What `LanguageDeployment.costs` asks of its thread."""

    def __init__(self, runtime: LanguageRuntime) -> None:
        self.runtime = runtime


def contexts(bench: Bench) -> None:
    """64 texts at once on one cloud whose budget holds a part of them."""
    count, length, budget = (16, 16, 1 << 20) if bench.quick else (64, 60, 3 << 20)
    prompts = bench.prompts(count)
    plan = deploy_language(bench.target, Bytes(), local=bench.draft).plan
    digest = secrets.token_hex(32)
    alone = WholeModel(bench.target)
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(alone.step(ids).logits.argmax()))
        wanted.append(ids)

    async def run() -> tuple[int, int, int, int, int]:
        settings = APART.model_copy(update={"language": LanguageLimits(budget_bytes=budget)})
        link = Loopback(None, settings, plan.cloud(digest))
        runtime = LanguageRuntime(plan.edge(digest), link)
        await runtime.start()
        await runtime.connected(10.0)
        store = link.host.core.desk.store
        ways = (Way(Mode.STREAM), Way(Mode.SPEC, drafts=4))
        streams = [runtime.write(Wish(tuple(p), length), ways[i % 2]) for i, p in enumerate(prompts)]
        most, done = 0, asyncio.gather(*(_read(stream) for stream in streams), return_exceptions=True)
        while not done.done():
            most = max(most, store.nbytes)
            await asyncio.sleep(0.002)
        errors = sum(isinstance(found, Exception) for found in done.result())
        mixed = sum(stream.ids != ids for stream, ids in zip(streams, wanted, strict=True))
        await runtime.close()
        await link.wait_closed()
        return errors, mixed, most, store.demoted, store.dropped

    errors, mixed, most, demoted, dropped = asyncio.run(run())
    bench.report.add("contexts at once", count, "contexts")
    bench.report.add("contexts: texts that failed", errors, "texts", at_most=0)
    bench.report.add("contexts: texts unlike the single user's", mixed, "texts", at_most=0)
    bench.report.add("contexts: most memory over the budget", most / budget, "ratio", at_most=1.0)
    bench.report.add("contexts: keys and values dropped and rebuilt", demoted + dropped, "times")


async def _read(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


def overhead(bench: Bench) -> None:
    """A token through the runtime over a token of the bare model's own decode loop."""
    tokens, rounds = (12, 2) if bench.quick else (40, 7)
    sizes = {"stories260K": bench.target}
    sizes["large"] = (
        llama(256, 4, 4, 512, 512, 256, 1) if bench.quick else llama(768, 8, 12, 2048, 4096, 256, 1)
    )
    for name, model in sizes.items():
        prompt = bench.prompts(1)[0]
        ours = WholeModel(model)
        with deploy_language(model, Bytes(), local=model) as pair:
            for mode in ("local", "cloud_stream"):
                pair.generate(prompt, max_tokens=4, mode=mode, stops=NONE)
            took: dict[str, list[float]] = {"bare": [], "ours": [], "local": [], "cloud_stream": []}
            for _ in range(rounds):  # in turns, so that what else the machine does hits all alike
                took["bare"].append(_bare(model, prompt, tokens))
                took["ours"].append(_loop(ours, prompt, tokens))
                for mode in ("local", "cloud_stream"):
                    text = pair.generate(prompt, max_tokens=tokens, mode=mode, stops=NONE)
                    took[mode].append(text.tpot_s)
        bare = statistics.median(took["bare"])
        bench.report.add(f"{name}: bare decode loop of transformers, a token", bare, "s")
        bench.report.add(
            f"{name}: the split model's bare loop over it", statistics.median(took["ours"]) / bare, "ratio"
        )
        for mode in ("local", "cloud_stream"):
            goal = {"at_most": 1.05} if name == "large" else {}
            ratio = statistics.median(a / b for a, b in zip(took[mode], took["bare"], strict=True))
            bench.report.add(f"{name}: {mode} through the runtime over bare", ratio, "ratio", **goal)


@torch.inference_mode()
def _bare(model: torch.nn.Module, prompt: list[int], tokens: int) -> float:
    out = model(torch.tensor([prompt]), use_cache=True)
    begun = time.perf_counter()
    for _ in range(tokens):
        ids = out.logits[:, -1:].argmax(-1)
        out = model(ids, past_key_values=out.past_key_values, use_cache=True)
    return (time.perf_counter() - begun) / tokens


def _loop(model: WholeModel, prompt: list[int], tokens: int) -> float:
    ids = list(prompt)
    model.forget()
    ids.append(int(model.step(ids).logits.argmax()))
    begun = time.perf_counter()
    for _ in range(tokens):
        ids.append(int(model.step(ids).logits.argmax()))
    return (time.perf_counter() - begun) / tokens


PARTS: dict[str, Callable[[Bench], None]] = {
    "lossless": lossless, "exits": exits, "auto": auto, "paced": paced, "contexts": contexts,
    "overhead": overhead, "rejection": rejection,
}  # fmt: skip


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 45 s on 2 cores; figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    asked = parser.parse_args()
    names = asked.only.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    show_machine("language models")
    report = Report("language models")
    bench = Bench(asked.quick, report)
    for name in names:
        console.rule(name)
        PARTS[name](bench)
    table = Table(title="figures", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for f in report.figures:
        table.add_row(f.name, "not measured" if f.value is None else f"{f.value:.4g} {f.unit}")
    console.print(table)
    report.finish(asked.json)


if __name__ == "__main__":
    main()
