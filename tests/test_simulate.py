"""`simulate` and its verb: what is refused before a run, workloads, devices, files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_world import SPLIT, evaluation, flat, scenario
from typer.testing import CliRunner

from splitedge.cli import _mount_plugins, app
from splitedge.errors import ConfigError, PolicyError, RecordError, SimulationError, TraceError, UnknownName
from splitedge.evaluation import Evaluation
from splitedge.policies.static import Static
from splitedge.policy import Decision, Policy
from splitedge.policy_setup import ready_policy
from splitedge.records import read_records
from splitedge.sim.device import log_normal_sigma
from splitedge.sim.formats import write_csv
from splitedge.sim.policies import policy_for
from splitedge.sim.save import read_simulation, records_of, save
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulate import read_evaluation, simulate
from splitedge.sim.simulate_command import parse_sets, read_scenario
from splitedge.sim.synth import lte_like
from splitedge.sim.workload import arrivals, read_arrivals, rows


def run(answers=None, policy=None, **tables):
    return simulate(scenario(**tables), evaluation=answers or evaluation(), up=flat(), policy=policy)


# Policies that go wrong ---------------------------------------------------------------------------------


class Wrong(Policy):
    """Takes option 0 until `when(obs)`; then does `what`."""

    name = "wrong"

    def __init__(self, when, what):
        self.when, self.what = when, what

    def decide(self, obs):
        return Decision(self.what() if self.when(obs) else 0)

    def explain(self, obs, decision):
        return "because"


def fails():
    raise KeyError("no such link")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: 99, "chose option 99; there are 4"),
        (lambda: -1, "chose option -1"),
        (lambda: math.nan, "ValueError: cannot convert float NaN"),
        (lambda: "cloud", "invalid literal"),
        (fails, "KeyError: 'no such link'"),
    ],
)
@pytest.mark.parametrize("when", [lambda obs: not obs.link_up, lambda obs: obs.confidence > 0.9])
def test_a_policy_that_goes_wrong_is_named_before_the_run(what, message, when):
    arrived = []
    with pytest.raises(SimulationError, match="policy 'wrong'") as caught:
        simulate(
            scenario(), evaluation=evaluation(), up=flat(),
            policy=Wrong(when, what), progress=arrived.append,
        )  # fmt: skip
    assert message in str(caught.value) and "asked at" in str(caught.value)
    assert not arrived


def test_a_policy_that_goes_wrong_later_ends_the_run():
    late = Wrong(lambda obs: obs.t_s > 30.0, lambda: 99)  # nobody asks about that beforehand
    with pytest.raises(SimulationError, match="policy 'wrong' chose option 99"):
        run(policy=late, work={"requests": 1000})


def test_a_policy_that_can_not_learn_ends_the_run():
    class Dull(Static):
        def learn(self, record):
            raise RuntimeError("too hard")

    with pytest.raises(SimulationError, match=r"RuntimeError: too hard\) when it was to learn"):
        run(policy=Dull("local"))


def test_a_policy_that_the_deployment_does_not_suit():
    with pytest.raises(PolicyError, match="needs the route"):
        simulate(scenario(policy="confidence"), evaluation=evaluation((SPLIT,)), up=flat())
    with pytest.raises(UnknownName, match="no 'deadlines'"):
        simulate(scenario(policy="deadlines"), evaluation=evaluation(), up=flat())


def test_the_policy_given_is_left_as_it_was():
    policy = Static("split")
    run(policy=policy)
    assert policy._options == ()


def test_confidence_takes_the_thresholds_of_the_deployment(tmp_path):
    answers = evaluation(rows=400)
    answers.save(tmp_path / "evaluation.npz")
    again = Evaluation.load(tmp_path / "evaluation.npz")
    ours = policy_for("confidence:0.8", again)
    theirs, found = ready_policy("confidence:0.8", answers.table, answers.evidence)
    assert ours.thresholds == theirs.thresholds == {0: found[0].value}
    assert again.evidence == answers.evidence
    simulated = simulate(scenario(policy="confidence:0.8"), evaluation=again, up=flat(20.0))
    sure = again.confidence[1][simulated["row"]] >= found[0].value
    in_time = ~simulated["degraded"]
    assert np.array_equal(simulated["route"][in_time] == "exit", sure[in_time])


# Files that go wrong ------------------------------------------------------------------------------------

BAD_TRACES = {
    "unsorted": ("t_s,mbps\n0,5\n2,5\n1,5\n", "t_s"),
    "negative": ("t_s,mbps\n0,5\n1,-5\n", "-5"),
    "nan": ("t_s,mbps\n0,5\n1,nan\n", "nan"),
    "empty": ("", "empty"),
    "huge": ("t_s,mbps\n0,5\n1,1e300\n", "1e300"),
    "truncated": ("t_s,mbps\n0,5\n1,", "3"),
    "rtt only": ("t_s,rtt_ms\n0,5\n1,5\n", "uplink"),
    "packets unsorted": ("1\n5\n3\n", "3"),
}


@pytest.mark.parametrize("name", BAD_TRACES)
def test_a_bad_trace_is_one_error(tmp_path, name):
    text, found = BAD_TRACES[name]
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(TraceError) as caught:
        simulate(scenario(channel={"up": str(file)}), evaluation=evaluation())
    assert "bad.csv" in str(caught.value) and found in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1\n", "'nonsense'"),
        ("[work]\nrate = 3\n", "'work.rate'"),
        ("[engine]\nmargin = 3\n", "'engine.margin'"),
        ("[device]\nlike = 'toaster'\n", "there are profiled, phone-2017"),
        ("[cloud]\nexecutors = 0\n", "'cloud.executors'"),
        ("[work\n", "scenario.toml"),
    ],
)
def test_a_bad_scenario_is_one_error_with_its_key(tmp_path, text, message):
    file = tmp_path / "scenario.toml"
    top, _, tables = text.partition("[") if text.startswith("nonsense") else ("", "", text)
    file.write_text(f"deployment = 'e'\n{top}channel.up = 'u'\n{tables}")
    for read in (Scenario.read, lambda path: read_scenario(path, {})):
        with pytest.raises(ConfigError) as caught:
            read(file)
        assert message in str(caught.value)


def test_an_evaluation_that_does_not_do(tmp_path):
    full = evaluation()
    bare = Evaluation(full.options, full.correct, full.confidence, full.nbytes, full.labels)
    with pytest.raises(ConfigError, match="no option table"):
        run(bare)
    unsized = evaluation()
    unsized.nbytes[2] = math.nan
    with pytest.raises(ConfigError, match="sizes=True"):
        run(unsized)
    with pytest.raises(ConfigError, match="no rows"):
        run(evaluation(rows=0))
    with pytest.raises(ConfigError, match=r"holds no evaluation\.npz"):
        read_evaluation(tmp_path)
    with pytest.raises(RecordError, match="no evaluation"):
        read_evaluation(tmp_path / "nowhere")
    full.save(tmp_path / "evaluation.npz")
    assert read_evaluation(tmp_path).options == full.options
    with pytest.raises(SimulationError, match="fleet mode"):
        run(work={"requests": 100_000_000})


# Work ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n2\n1\n", ":3: 1 s comes after 2 s"),
        ("0\n-1\n", ":2: '-1'"),
        ("nan\n", ":1: 'nan'"),
        ("0\ninf\n", ":2: 'inf'"),
        ("\n \n", "empty"),
        ("0\nsoon\n", ":2: 'soon'"),
    ],
)
def test_bad_arrivals_are_refused_by_line(tmp_path, text, message):
    file = tmp_path / "arrivals.txt"
    file.write_text(text)
    with pytest.raises(RecordError) as caught:
        run(work={"arrivals": str(file)})
    assert message in str(caught.value)


def test_recorded_arrivals_are_replayed_from_text_and_from_records(tmp_path):
    times = [0.25, 0.3, 0.3, 1.75]
    (tmp_path / "arrivals.txt").write_text("".join(f"{t}\n" for t in times))
    found = run(work={"arrivals": str(tmp_path / "arrivals.txt")})
    assert found["t_s"].tolist() == times
    records_of(found).to_jsonl(tmp_path / "day.jsonl")
    again = run(work={"arrivals": str(tmp_path / "day.jsonl"), "requests": 3, "start_s": 5.0})
    assert again["t_s"] == pytest.approx([5.0, 5.05, 5.05])
    with pytest.raises(RecordError):
        read_arrivals(tmp_path / "no-day.jsonl")


def test_poisson_arrivals_have_their_rate_and_devices_their_own():
    wanted = scenario(work={"arrivals": "poisson", "rate_hz": 10.0, "requests": 5000}, device={"count": 2})
    one, other = arrivals(wanted, 0), arrivals(wanted, 1)
    gaps = np.diff(one)
    assert np.mean(gaps) == pytest.approx(0.1, rel=0.06) and np.std(gaps) == pytest.approx(0.1, rel=0.1)
    assert abs(np.corrcoef(gaps, np.diff(other))[0, 1]) < 0.1


@given(requests=st.integers(1, 50), there_are=st.integers(1, 20), seed=st.integers(0, 9))
def test_rows_come_again_only_when_all_have_come(requests, there_are, seed):
    found = rows(scenario(seed=seed), 0, requests, there_are)
    for begin in range(0, requests, there_are):
        deck = found[begin : begin + there_are]
        assert len(set(deck.tolist())) == len(deck)
    assert np.all((found >= 0) & (found < there_are))


@given(mean=st.floats(1e-4, 1.0), ratio=st.floats(1.001, 3.5))
def test_seconds_have_their_mean_and_95th_percentile(mean, ratio):
    sigma = log_normal_sigma(mean, mean * ratio)
    assert math.exp(1.6449 * sigma - 0.5 * sigma**2) == pytest.approx(ratio, rel=1e-3)


def test_a_class_of_devices_stands_for_its_numbers():
    part = scenario(device={"like": "phone-2017", "slower": 1.0}).device
    assert part.slower == pytest.approx(32.3 / 4.5) and part.power == "phone-lte"
    again = Scenario.model_validate({**scenario().model_dump(), "device": part.model_dump()})
    assert again.device == part


# Files and the verb -------------------------------------------------------------------------------------


def test_a_simulation_comes_back_from_disk_and_reads_as_records(tmp_path):
    found = run(policy=None, reasons=True)
    table, arrays = save(found, tmp_path / "out")
    again = read_simulation(arrays)
    assert (again.policy, again.trace, again.seed, again.seconds) == (
        "deadline",
        "8 Mbit/s",
        0,
        found.seconds,
    )
    for name, column in found.columns.items():
        assert np.array_equal(again[name], column, equal_nan=column.dtype.kind == "f"), name
    assert len(table.read_text().splitlines()) == len(found) + 1
    records_of(found).to_npz(tmp_path / "records.npz")
    read = read_records(tmp_path / "records.npz")
    assert read["reason"].tolist() == found["reason"].tolist() and all(read["reason"])
    assert read.summary(found["right"]).p95_s == pytest.approx(found.score().p95_s)
    (tmp_path / "other.npz").write_bytes(b"PK")
    with pytest.raises(RecordError, match="no simulation"):
        read_simulation(tmp_path / "other.npz")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    evaluation().save(folder / "evaluation.npz")
    write_csv(lte_like(30, 1), folder / "lte.csv")
    (folder / "scenario.toml").write_text(
        "deployment = 'evaluation.npz'\nseed = 4\n[channel]\nup = 'lte.csv'\n[work]\nrequests = 30\n"
    )
    return folder


def test_the_verb_takes_a_file_and_flags_over_it(files, monkeypatch):
    monkeypatch.chdir("/")
    _mount_plugins()
    flags = ["--policy", "static:local", "--set", "work.deadline_ms=200", "--json"]
    flags += ["--out", str(files / "out")]
    done = CliRunner().invoke(app, ["simulate", str(files / "scenario.toml"), *flags], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    score = json.loads(done.stdout)
    assert score["requests"] == 30 and score["seed"] == 4 and score["routes"] == {"local": 30}
    assert read_simulation(files / "out" / "simulation.npz")["deadline_s"][0] == 0.2
    shown = CliRunner().invoke(app, ["simulate", str(files / "scenario.toml")], catch_exceptions=False)
    assert "right within 150 ms" in shown.stdout


def test_flags_alone_make_a_scenario_and_unknown_keys_do_not(files, monkeypatch):
    monkeypatch.chdir(files)
    sets = parse_sets(["work.rate_hz=5", "policy=x"])
    changes = {"deployment": "evaluation.npz", "channel.up": "lte.csv", **sets}
    made = read_scenario(None, changes)
    assert made.channel.up == files / "lte.csv" and made.work.rate_hz == 5.0 and made.policy == "x"
    with pytest.raises(ConfigError, match="--up"):
        read_scenario(None, {"deployment": "evaluation.npz"})
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_sets(["work"])
    with pytest.raises(ConfigError, match=r"'work\.rate'\. Did you mean 'rate_hz'"):
        read_scenario(None, {**changes, "work.rate": 3})
    with pytest.raises(ConfigError, match="no table"):
        read_scenario(None, {**changes, "policy.x": 3})
