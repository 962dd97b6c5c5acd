"""The rate-distortion bench from end to end, with a learned codec that is quickly made."""

import json
from dataclasses import replace
from importlib.metadata import EntryPoint

import fake_codec
import numpy as np
import pytest

from splitedge import registry
from splitedge.codecs import bench, keeping
from splitedge.codecs.bench_digits import digits
from splitedge.codecs.bench_goals import figures
from splitedge.codecs.bench_plots import draw
from splitedge.codecs.bench_report import into_page, markdown, write_csv, write_json
from splitedge.codecs.contenders import CONTENDERS, Contender
from splitedge.errors import BundleError, ConfigError
from splitedge.learning import Schedule

FAKE = Contender("fake", "fake", "fake", "ours", "early")
SCHEDULE = Schedule(progress=False)


@pytest.fixture(scope="module")
def subject():
    made = digits(epochs=4)
    return replace(made, test=made.test.first(60))


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    table = registry._table
    fake = EntryPoint("fake", "fake_codec:Fake", "splitedge.codecs")
    monkeypatch.setattr(
        registry, "_table", lambda group: table(group) | ({"fake": fake} if group == fake.group else {})
    )


def some(*names):
    return [c for c in CONTENDERS if c.name in names]


def test_points_are_measured_and_what_can_not_run_is_said(subject):
    strange = [
        replace(FAKE, name="refuses", options={"refuse": True}),
        replace(FAKE, name="unknown option", options={"wings": 2}),
        replace(FAKE, name="unknown", codec="nobody"),
    ]
    outcome = bench.run(subject, [*some("webp", "int8 late"), FAKE, *strange], SCHEDULE)
    assert outcome.families() == ["webp", "int8 late", "fake"]
    assert [name for name, _ in outcome.left_out] == ["refuses", "unknown option", "unknown"]
    webp, (int8,), fake = (outcome.family(f) for f in outcome.families())
    assert [p.bytes_mean for p in webp] == sorted(p.bytes_mean for p in webp)
    assert all(p.encoder_macs == 0 and p.encoder_kib < 0.1 for p in webp)
    assert int8.macs_share > 0.9 and int8.encoder_kib > 0.9 * outcome.worst.encoder_kib
    assert np.mean(int8.correct == outcome.whole) > 0.95
    assert {*fake[0].payload} == {8 + 256} and np.all(fake[0].framed > fake[0].payload)
    assert fake[0].epochs == 3 and fake[0].accuracy > 0.5
    assert all(0 <= p.pack_s <= p.encode_s and 0 < p.unpack_s <= p.decode_s for p in outcome.points)


def test_a_kept_codec_is_neither_trained_nor_measured_again(subject, tmp_path, monkeypatch):
    before = fake_codec.Fake.trained
    first = bench.run(subject, [FAKE], SCHEDULE, keep_in=tmp_path)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured again"))
    second = bench.run(subject, [FAKE], SCHEDULE, keep_in=tmp_path)
    assert fake_codec.Fake.trained == before + 1
    assert np.array_equal(first.points[1].correct, second.points[1].correct)
    assert first.points[0].train_s == second.points[0].train_s
    (place,) = tmp_path.iterdir()
    assert keeping.folder(tmp_path, FAKE, "another subject") != place
    (place / "encoder.json").write_text("{}")
    with pytest.raises(BundleError, match="delete the folder"):
        bench.run(subject, [FAKE], SCHEDULE, keep_in=tmp_path)


def test_figures_tables_and_plots(subject, tmp_path):
    outcome = bench.run(subject, [*some("webp", "png"), FAKE], SCHEDULE)
    found = {f.name: f for f in figures(outcome)}
    small = found["points lost at a payload of at most 64 B, encoder at most 5% of MACs"]
    assert (small.value, small.goal, small.met) == (None, 1.0, False)  # the fake sends 264 B
    assert 0 < found["hypervolume of fake"].value < 1
    assert "BD-rate of fake against webp, payload" in found
    assert markdown(outcome, [*found.values()]).count("| webp:") == len(outcome.family("webp"))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: digits -->\nold\n<!-- end of table: digits -->\nb\n")
    into_page(page, outcome, [*found.values()])
    assert "old" not in page.read_text() and page.read_text().endswith("b\n")
    with pytest.raises(ConfigError, match="has no lines"):
        into_page(tmp_path / "none.md", outcome, [])
    write_csv(outcome.points, tmp_path / "p.csv")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + len(outcome.points)
    write_json(outcome, [*found.values()], tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["figures"][0]["goal"] == 1.0
    draw(outcome, tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000 < (tmp_path / "b.png").stat().st_size


def test_slimmable_is_compared_with_what_was_made_for_a_level_alone(subject):
    slim = replace(FAKE, name="slimmable", family="slimmable")
    alone = replace(FAKE, name="dedicated 1", family="dedicated", dedicated=1)
    found = {f.name: f for f in figures(bench.run(subject, [slim, alone], SCHEDULE))}
    tax = found["tax of slimmable at level fine"]
    # The same codec twice: sums of several threads may differ in the last bit, and so a row that is a tie.
    assert tax.value is not None and abs(tax.value) < 5.0 and tax.met == (tax.value <= 0.5)


def test_contenders_are_chosen_by_name_or_family():
    assert {c.name for c in bench.chosen(["WebP", "CR+BQ"])} == {
        "webp",
        *(f"CR+BQ {c}" for c in (1, 2, 4, 8)),
    }
    assert {c.kind for c in bench.chosen(quick=True)} >= {"ours", "baseline"}
    with pytest.raises(ConfigError, match="no contender or family 'nobody'"):
        bench.chosen(["nobody"])
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)
