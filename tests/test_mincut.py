"""The cheapest division: equal to trying everything, on chains, on random graphs and on real models."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from splitedge.errors import PartitionError
from splitedge.mincut import LatencyModel, Value, cheapest
from splitedge.partition import Graph, capture

seconds = st.floats(0, 10, allow_nan=False)


def cost(edge: frozenset[int], edge_s: list[float], cloud_s: list[float], values: list[Value]) -> float:
    """Seconds of a division; infinite when a node on the edge needs something from the cloud."""
    total = sum(edge_s[i] if i in edge else cloud_s[i] for i in range(len(edge_s)))
    for value in values:
        made_here = value.producer < 0 or value.producer in edge
        if not made_here and any(c in edge for c in value.consumers):
            return float("inf")
        if made_here and any(c not in edge for c in value.consumers):
            total += value.send_s
    return total


def best_by_trying(edge_s: list[float], cloud_s: list[float], values: list[Value]) -> float:
    nodes = range(len(edge_s))
    sets = itertools.chain.from_iterable(itertools.combinations(nodes, k) for k in range(len(edge_s) + 1))
    return min(cost(frozenset(s), edge_s, cloud_s, values) for s in sets)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[float], list[float], list[Value]]:
    count = draw(st.integers(1, 7))
    edge_s = draw(st.lists(seconds, min_size=count, max_size=count))
    cloud_s = draw(st.lists(seconds, min_size=count, max_size=count))
    values = []
    for producer in range(-1, count):
        later = (
            st.sets(st.integers(producer + 1, count - 1), max_size=4)
            if producer + 1 < count
            else st.just(set())
        )
        values.append(Value(producer, tuple(sorted(draw(later))), draw(seconds)))
    return edge_s, cloud_s, values


@settings(max_examples=150, deadline=None)
@given(networks())
def test_it_equals_trying_every_division_of_a_graph(
    network: tuple[list[float], list[float], list[Value]],
) -> None:
    edge_s, cloud_s, values = network
    found = cost(cheapest(edge_s, cloud_s, values), edge_s, cloud_s, values)
    assert found == pytest.approx(best_by_trying(edge_s, cloud_s, values), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=12), seconds)
def test_it_equals_exhaustive_search_on_a_chain(
    chain: list[tuple[float, float, float]], upload: float
) -> None:
    edge_s, cloud_s, sends = ([row[i] for row in chain] for i in range(3))
    ends = range(1, len(chain) + 1)
    values = [Value(-1, (0,), upload), *(Value(i - 1, (i,), sends[i - 1]) for i in ends if i < len(chain))]
    found = cheapest(edge_s, cloud_s, values)
    assert found == frozenset(range(len(found)))  # a prefix
    tried = min(cost(frozenset(range(k)), edge_s, cloud_s, values) for k in range(len(chain) + 1))
    assert cost(found, edge_s, cloud_s, values) == pytest.approx(tried, abs=1e-9)


def test_a_value_with_many_consumers_is_paid_once() -> None:
    values = [Value(-1, (0,), 100.0), Value(0, (1, 2, 3), 2.0)]
    assert cheapest([1.0, 9, 9, 9], [1.0, 8, 8, 8], values) == {0}  # 2 s once, not 6 s


def test_what_may_not_cross_does_not() -> None:
    values = [Value(-1, (0,), float("inf")), Value(0, (1,), float("inf"))]
    assert cheapest([100.0, 100.0], [0.0, 0.0], values) == {0, 1}


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_costs_must_be_seconds(bad: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        cheapest([bad], [1.0], [])


# On captured models ---------------------------------------------------------------------------------


@cache
def chain() -> Graph:
    return capture(zoo.small_cnn(), torch.randn(1, 1, 8, 8))


@cache
def inception() -> Graph:
    return capture(zoo.Inception().eval(), torch.randn(1, 3, 16, 16))


def all_cuts(graph: Graph) -> list:
    return [graph.cut("cloud"), *graph.cuts(), graph.cut("local")]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_best_cut_equals_exhaustive_search_on_a_chain(data: st.DataObject) -> None:
    graph = chain()
    names = [n.name for n in graph.nodes if n.flops]  # views cost nothing on either side
    free = {n.name: 0.0 for n in graph.nodes}
    edge_s = {**free, **{n: data.draw(seconds) for n in names}}
    cloud_s = {**free, **{n: data.draw(seconds) for n in names}}
    model = LatencyModel(edge_s, cloud_s, data.draw(st.floats(1.0, 1e6)), data.draw(seconds))
    tried = min(graph.latency(cut, model) for cut in all_cuts(graph))
    assert graph.latency(graph.best_cut(model), model) == pytest.approx(tried, rel=1e-9, abs=1e-9)


def test_the_ends_are_found() -> None:
    graph = chain()
    flops = graph.flops
    slow_link = LatencyModel.from_flops(flops, edge_flops_per_s=1e9, cloud_flops_per_s=1e10, goodput_bps=1.0)
    assert graph.best_cut(slow_link).place == "LOCAL"
    slow_edge = LatencyModel.from_flops(flops, edge_flops_per_s=1.0, cloud_flops_per_s=1e10, goodput_bps=1e9)
    assert graph.best_cut(slow_edge).place == "CLOUD"
    assert graph.best_cut(slow_edge).tensors[0].spec.shape == (1, 1, 8, 8)


def test_a_fixed_price_of_the_cloud_is_weighed_against_staying() -> None:
    graph = chain()
    rates = {"edge_flops_per_s": 1e6, "cloud_flops_per_s": 1e12, "goodput_bps": 1e9}
    assert graph.best_cut(LatencyModel.from_flops(graph.flops, **rates)).place != "LOCAL"
    assert graph.best_cut(LatencyModel.from_flops(graph.flops, **rates, fixed_s=10.0)).place == "LOCAL"


def test_the_best_cut_of_a_graph_with_branches_may_be_no_prefix() -> None:
    graph = inception()
    nodes = graph.nodes
    first = [n.name for n in nodes if n.module_path.startswith("mixed.0.five")]
    edge_s = {n.name: 1e-6 for n in nodes}
    cloud_s = {n.name: 1e-3 for n in nodes}
    edge_s |= {n.name: 1.0 for n in nodes if n.module_path.startswith(("mixed.0.point", "mixed.1", "fc"))}
    cloud_s |= dict.fromkeys(first, 5.0)  # the branch that comes after `point` in order is cheap here
    model = LatencyModel(edge_s, cloud_s, 1e9)
    best = graph.best_cut(model)
    assert best.place == "SPLIT"
    assert best not in graph.cuts()
    assert graph.latency(best, model) < min(graph.latency(c, model) for c in all_cuts(graph))
    head, tail = graph.split(best)
    x = torch.randn(3, 3, 16, 16)
    torch.manual_seed(0)
    assert graph.cut(best.name) == best
    with torch.inference_mode():
        whole = graph.segments([])[0](x)[0]
        assert (tail(*head(x)) - whole).abs().max().item() <= 1e-5


def test_random_divisions_of_a_graph_with_branches_are_never_worse_than_its_cuts() -> None:
    graph = inception()
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        draw = torch.rand(2, len(graph.nodes), generator=generator) * 1e-3
        names = [n.name for n in graph.nodes]
        costs = [dict(zip(names, map(float, row), strict=True)) for row in draw]
        model = LatencyModel(*costs, goodput_bps=1e8)
        best = graph.best_cut(model)
        assert graph.latency(best, model) <= min(graph.latency(c, model) for c in all_cuts(graph)) + 1e-9
        if best.place != "LOCAL":
            head, tail = graph.split(best)
            x = torch.randn(2, 3, 16, 16)
            assert torch.allclose(tail(*head(x)), graph.segments([])[0](x)[0], atol=1e-5)


def test_a_latency_model_must_know_every_node() -> None:
    with pytest.raises(PartitionError, match="no seconds for node"):
        chain().best_cut(LatencyModel({}, {}, 1e6))
    with pytest.raises(ValueError, match="goodput_bps"):
        LatencyModel({}, {}, 0.0)


def test_a_module_without_branches_has_a_cut_after_each_layer() -> None:
    assert [c.name for c in chain().cuts()] == ["0", "1", "2", "3", "4", "5"]
    assert isinstance(chain().split(chain().cut("2"))[0], nn.Module)
