"""Sweeps: one table on every executor, failures named, seeds derived, bad input refused before a run."""

import csv
import importlib.util

import numpy as np
import pytest
from fake_simulate import fake, no_bound, save_evaluation

from splitedge.errors import ConfigError, MissingExtra, PolicyError, UnknownName
from splitedge.sim.formats import write_csv
from splitedge.sim.grid import Sweep, find_traces, full_key, read_sweep, seed_of
from splitedge.sim.inputs import evaluation_of, trace_of
from splitedge.sim.scenario import ChannelPart, Scenario, WorkPart
from splitedge.sim.sweep import run_sweep
from splitedge.sim.sweep_command import parse_axes, save_table
from splitedge.sim.synth import lte_like


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "traces").mkdir()
    for i in range(2):
        write_csv(lte_like(20, i), tmp_path / "traces" / f"lte-{i}.csv")
    save_evaluation(tmp_path / "evaluation.npz")
    return tmp_path


def scenario(folder, **work):
    up = folder / "traces" / "lte-0.csv"
    return Scenario(
        deployment=folder / "evaluation.npz",
        channel=ChannelPart(up=up),
        work=WorkPart(requests=60, **work),
    )


def sweep_of(folder, **more):
    axes = {
        "policy": ["deadline", "static:local"],
        "trace": find_traces(["traces/*.csv"], folder),
        "deadline_ms": [60, "150"],
    }
    return Sweep(scenario(folder), axes, **more)


def installed(*names):
    return all(importlib.util.find_spec(name) is not None for name in names)


@pytest.mark.parametrize(
    "executor",
    [
        "joblib:2",
        pytest.param(
            "dask:2",
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(400),  # a cluster's start on a busy machine
                pytest.mark.skipif(not installed("distributed"), reason="dask is not installed"),
                pytest.mark.filterwarnings("default"),
            ],
        ),
        pytest.param(
            "ray:2",
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(400),  # a cluster's start on a busy machine
                pytest.mark.skipif(not installed("ray"), reason="ray is not installed"),
                pytest.mark.filterwarnings("default"),
            ],
        ),
    ],
)
def test_table_is_the_same_byte_for_byte_on_every_executor(folder, executor):
    sweep = sweep_of(folder, seeds=2)
    tables = []
    for name in ("local", executor):
        result = run_sweep(sweep, name)
        assert not result.failed
        tables.append([path.read_bytes() for path in save_table(result, folder / name.replace(":", "-"))])
    assert tables[0][0] == tables[1][0]
    assert tables[0][1] == tables[1][1]


def test_table_has_a_row_a_run_and_regret_to_the_oracle(folder):
    result = run_sweep(sweep_of(folder, seeds=2), simulate=fake, bound=no_bound)
    columns = result.columns()
    assert {len(values) for values in columns.values()} == {3 * 2 * 2 * 2}
    assert {values.dtype.kind for values in columns.values()} <= set("ifU")  # what Parquet's writers take
    for i, policy in enumerate(columns["policy"]):
        same = (columns["trace"] == columns["trace"][i]) & (columns["seed"] == columns["seed"][i])
        same &= columns["work.deadline_ms"] == columns["work.deadline_ms"][i]
        best = columns["correct_in_time"][same & (columns["policy"] == "oracle")]
        assert columns["regret"][i] == best[0] - columns["correct_in_time"][i]
        assert columns["regret_to_bound"][i] == pytest.approx(0.95 - columns["correct_in_time"][i])
        assert columns["regret"][i] == 0.0 or policy != "oracle"
    counts = sum(values for name, values in columns.items() if name.startswith("answers_"))
    assert np.array_equal(counts, columns["requests"])


def test_csv_and_arrays_say_the_same(folder):
    result = run_sweep(sweep_of(folder), simulate=fake, bound=no_bound)
    as_csv, as_arrays = save_table(result, folder / "out")
    with as_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(as_arrays, allow_pickle=False) as arrays:
        assert list(arrays) == list(rows[0])
        for name in ("correct_in_time", "p95_s", "joules"):
            assert [float(row[name]) for row in rows] == arrays[name].tolist()
        assert [row["policy"] for row in rows] == arrays["policy"].tolist()


def test_a_run_that_fails_is_named_and_the_others_go_on(folder, tmp_path):
    bad = tmp_path / "traces" / "torn.csv"
    bad.write_text("t_s,mbps\n0,5\n1,nan\n")
    axes = {"policy": ["deadline"], "trace": find_traces(["traces/*.csv"], folder)}
    result = run_sweep(Sweep(scenario(folder), axes))
    assert [(run.point["policy"], run.point["channel.up"]) for run, _ in result.failed] == [
        ("deadline", str(bad)),
        ("oracle", str(bad)),
    ]
    assert all("torn.csv:3" in error and "TraceError" in error for _, error in result.failed)
    columns = result.columns()
    good = columns["error"] == ""
    assert good.sum() == 4
    assert np.isfinite(columns["correct_in_time"][good]).all()
    assert np.isnan(columns["correct_in_time"][~good]).all()


def test_what_an_interrupted_sweep_has_is_kept(folder):
    calls = []

    def stops(one):
        calls.append(one)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fake(one)

    result = run_sweep(sweep_of(folder), simulate=stops, bound=no_bound)
    assert len(result.failed) == len(result.runs) - 2
    assert all(error.startswith("not run: the executor stopped") for _, error in result.failed)


def test_seeds_come_from_the_sweep_and_the_repetition_alone(folder):
    runs = sweep_of(folder, seeds=3).runs()
    seeds = {run.repetition: run.scenario.seed for run in runs}
    assert all(run.scenario.seed == seeds[run.repetition] for run in runs)  # all face the same requests
    assert len(set(seeds.values())) == 3
    others = {run.scenario.seed for run in sweep_of(folder, seeds=3, id="other").runs()}
    assert others.isdisjoint(seeds.values())
    assert seed_of("sweep", 0, 0) == 76167115708820  # what is published must be found again


def test_axes_reach_their_key(folder):
    axes = parse_axes(["deadline_ms=50,100", "policy=static:a;static:b,c", "device.slower=2"])
    assert axes["policy"] == ["static:a", "static:b,c"]
    runs = Sweep(scenario(folder), axes, oracle=False).runs()
    assert len(runs) == 4
    assert {run.scenario.work.deadline_ms for run in runs} == {50.0, 100.0}
    assert {run.scenario.device.slower for run in runs} == {2.0}


@pytest.mark.parametrize(
    ("axes", "error", "text"),
    [
        ({"policy": ["moon"]}, UnknownName, "moon"),
        ({"policy": ["static:cloud"]}, PolicyError, "static"),
        ({"deadline": [1]}, ConfigError, "no key 'deadline'"),
        ({"slower": [1]}, ConfigError, "device.slower or cloud.slower"),
        ({"deadline_ms": [-1]}, ConfigError, "work.deadline_ms"),
        ({"seed": [1]}, ConfigError, "'seeds'"),
        ({"deadline_ms": [10], "work.deadline_ms": [20]}, ConfigError, "twice"),
        ({"trace": ["gone.csv"]}, ConfigError, "gone.csv"),
    ],
)
def test_refused_before_anything_runs(folder, axes, error, text):
    def never(one):
        pytest.fail("a run was started")

    with pytest.raises(error, match=text):
        run_sweep(Sweep(scenario(folder), axes), simulate=never)


@pytest.mark.parametrize("executor", ["slurm", "joblib:0", "joblib:x", "local:2"])
def test_executor_that_is_none(folder, executor):
    with pytest.raises(ConfigError, match="executor"):
        run_sweep(sweep_of(folder), executor, simulate=fake)


@pytest.mark.parametrize(("executor", "module"), [("dask", "dask"), ("ray", "ray")])
def test_executor_that_is_not_installed(folder, executor, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.setitem(__import__("sys").modules, f"{module}.distributed", None)
    with pytest.raises(MissingExtra, match=r"splitedge\[scale\]"):
        run_sweep(sweep_of(folder), executor, simulate=fake, bound=no_bound)


def test_sweep_in_a_scenario_file(folder):
    file = folder / "study.toml"
    file.write_text(
        'deployment = "evaluation.npz"\n[work]\nrequests = 60\n'
        '[sweep]\nid = "study"\nseeds = 2\ntraces = ["traces/*.csv"]\nexecutor = "joblib:2"\n'
        '[sweep.grid]\npolicy = ["deadline", "latency"]\nwork.deadline_ms = [50, 100]\n'
    )
    table, axes = read_sweep(file)
    assert table is not None and (table.id, table.seeds, table.executor) == ("study", 2, "joblib:2")
    assert axes["work.deadline_ms"] == [50, 100]
    assert axes["channel.up"] == [str(folder / "traces" / f"lte-{i}.csv") for i in range(2)]
    file.write_text('deployment = "e.npz"\n[channel]\nup = "x.csv"\n[sweep]\nsedes = 2\n')
    with pytest.raises(ConfigError, match=r"study.toml: unknown setting 'sweep.sedes'. Did you mean 'seeds'"):
        read_sweep(file)
    file.write_text('deployment = "e.npz"\n[channel]\nup = "x.csv"\n')
    assert read_sweep(file) == (None, {})


def test_a_trace_and_an_evaluation_are_read_once_until_they_change(folder):
    path = folder / "traces" / "lte-0.csv"
    assert trace_of(path) is trace_of(path)
    assert evaluation_of(folder) is evaluation_of(folder)
    before = trace_of(path)
    write_csv(lte_like(30, 9), path)
    assert trace_of(path) is not before


def test_keys():
    assert full_key("trace") == "channel.up"
    assert full_key("margin_s") == "engine.margin_s"
