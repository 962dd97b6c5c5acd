"""Reports: one file that fetches nothing, into which names can not inject, with the table's numbers."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_simulate import fake, no_bound, save_evaluation
from PIL import Image

from splitedge.errors import ConfigError
from splitedge.sim.digest import PARTS, SUMS, digest
from splitedge.sim.formats import write_csv
from splitedge.sim.grid import Run, Sweep
from splitedge.sim.intervals import means
from splitedge.sim.report import single, write_report
from splitedge.sim.report_style import spread_out
from splitedge.sim.scenario import ChannelPart, Scenario, WorkPart
from splitedge.sim.sweep import Outcome, SweepResult, run_sweep
from splitedge.sim.synth import lte_like

EVIL = "<script>alert(1)</script> & $x_{$ \"'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for i in range(2):
        write_csv(lte_like(20, i), folder / f"lte-{i}.csv")
    save_evaluation(folder / "evaluation.npz")
    return folder


def scenario(folder, trace="lte-0.csv", requests=300):
    return Scenario(
        deployment=folder / "evaluation.npz",
        channel=ChannelPart(up=folder / trace),
        work=WorkPart(requests=requests),
    )


@pytest.fixture(scope="module")
def result(folder):
    axes = {
        "policy": ["static:local", "static:split", "deadline"],
        "trace": [str(folder / f"lte-{i}.csv") for i in range(2)],
        "deadline_ms": [60, 150],
    }
    return run_sweep(Sweep(scenario(folder), axes, seeds=2), simulate=fake, bound=no_bound)


@pytest.fixture(scope="module")
def report(result, folder):
    return write_report(result, folder / "report", "A study")


class Tags(HTMLParser):
    """Start tags with their attributes; complains about tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.found, self._open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def close(self):
        super().close()
        assert not self._open


def tags(html):
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser.found


def test_one_file_that_fetches_nothing(report):
    html = report.read_text(encoding="utf-8")
    found = tags(html)
    links = [
        value
        for _, attributes in found
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object"}
    assert not any(text in html for text in ("http://", "https://", "@import", "url("))
    assert any(attributes.get("name") == "viewport" for tag, attributes in found if tag == "meta")
    assert "prefers-color-scheme: dark" in html
    assert len([tag for tag, _ in found if tag == "img"]) == 6
    assert all(attributes["alt"] for tag, attributes in found if tag == "img")
    pictures = sorted(p.stem for p in report.parent.glob("*.png"))
    assert pictures == ["along-work-deadline_ms", "bytes", "latency", "pareto", "regret", "routes"]
    for picture in report.parent.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width == 896
            assert len(set(image.convert("L").resize((64, 64)).get_flattened_data())) > 8  # not blank


def test_names_can_not_inject(folder, tmp_path):
    trace = folder / "<img src=x onerror=alert(1)>.csv"
    write_csv(lte_like(20, 3), trace)
    run = fake(scenario(folder))
    one = scenario(folder, trace.name).model_copy(update={"policy": EVIL})
    failed = Run(1, one, {"policy": EVIL, "channel.up": str(trace)}, 0)
    made = single(one, run)
    both = SweepResult((*made.runs, failed), (*made.outcomes, Outcome(error=f"TraceError: {EVIL}")))
    html = write_report(both, tmp_path, EVIL).read_text(encoding="utf-8")
    assert {tag for tag, _ in tags(html)}.isdisjoint({"script", "iframe", "object", "embed", "link", "a"})
    assert all(set(attributes) <= {"src", "alt"} for tag, attributes in tags(html) if tag == "img")
    assert not any(name.startswith("on") for _, attributes in tags(html) for name in attributes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_{$" in html


def test_headline_says_what_the_table_says(result, report):
    html = report.read_text(encoding="utf-8")
    columns = result.columns()
    for policy in ("static:local", "static:split", "oracle"):
        mine = columns["policy"] == policy
        row = re.search(rf"<td>{policy}</td><td>([\d.]+)%", html)
        assert row is not None
        assert float(row[1]) == pytest.approx(100 * columns["correct_in_time"][mine].mean(), abs=0.0501)


def test_intervals_hold_the_mean_and_narrow_with_more_seeds(folder):
    def width(seeds):
        sweep = Sweep(scenario(folder), {"policy": ["static:split"]}, seeds=seeds)
        found = means(run_sweep(sweep, simulate=fake, bound=no_bound))
        value = found.of("correct_in_time", "static:split")
        assert value.low < value.mean < value.high
        assert found.of("regret", "oracle").high == 0.0
        return value.high - value.low

    assert width(9) < 0.6 * width(1)


def test_interval_is_that_of_independent_answers(folder):
    """On a steady channel answers are independent: the bootstrap must agree with the binomial's own error."""
    sweep = Sweep(scenario(folder, requests=2000), {"policy": ["static:local"]}, oracle=False)
    value = means(run_sweep(sweep, simulate=fake)).of("accuracy", "static:local")
    exact = 2 * 1.96 * np.sqrt(value.mean * (1 - value.mean) / 2000)
    assert value.high - value.low == pytest.approx(exact, rel=0.35)


def test_digest_adds_up(folder):
    run = fake(scenario(folder, requests=777).model_copy(update={"policy": "static:split"}))
    one = digest(run)
    assert one.ends.sum() == one.sums[:, SUMS.index("requests")].sum() == 777
    assert one.sums.shape == (PARTS, len(SUMS))
    assert one.sums[:, SUMS.index("correct_in_time")].sum() / 777 == pytest.approx(one.score.correct_in_time)
    assert np.all(np.diff(one.latency_s[np.isfinite(one.latency_s)]) >= 0.0)


def test_a_run_without_one_answer_still_gives_a_report(folder, tmp_path):
    run = fake(scenario(folder))
    none = np.zeros(300, bool)
    nothing = {"error": np.full(300, "LinkDown"), "route": np.full(300, ""), "right": none, "met": none}
    dead = replace(run, columns={**run.columns, **nothing, "latency_s": np.full(300, np.nan)})
    html = write_report(single(scenario(folder), dead), tmp_path).read_text(encoding="utf-8")
    assert "0.0% (0.0 to 0.0)" in html


def test_nothing_to_report(folder, tmp_path):
    made = single(scenario(folder), fake(scenario(folder)))
    empty = SweepResult(made.runs, (Outcome(error="TraceError: torn"),))
    with pytest.raises(ConfigError, match="nothing to report"):
        write_report(empty, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can not be written"):
        write_report(made, tmp_path / "file")


def test_labels_keep_apart():
    placed = spread_out([1.0, 1.0, 0.99, 0.2], 0.1, 0.0, 1.0)
    assert min(np.diff(sorted(placed))) >= 0.1 - 1e-9
    assert max(placed) <= 1.0 and placed[3] == 0.2
