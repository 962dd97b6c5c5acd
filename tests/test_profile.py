"""Profiles: what is measured adds up, survives the disk, and scales."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

import pytest
import torch
import zoo
from torch import nn

from splitedge.errors import BundleError, PartitionError
from splitedge.partition import Graph, capture
from splitedge.profile import Profile, profile

EXAMPLE = torch.randn(1, 1, 8, 8)


@cache
def graph() -> Graph:
    return capture(zoo.small_cnn(), EXAMPLE)


@cache
def measured() -> Profile:
    return profile(graph(), EXAMPLE, warmup=1, repeats=5)


def test_every_cut_has_its_times_and_costs() -> None:
    found = measured()
    assert [c.name for c in found.cuts] == [c.name for c in graph().cuts()]
    assert (found.flops, found.params) == (graph().total_flops, graph().total_params)
    assert (found.rows, found.repeats, found.warmup) == (1, 5, 1)
    assert found.device
    for times, cut in zip(found.cuts, graph().cuts(), strict=True):
        assert (times.bytes, times.head_flops, times.tail_flops) == (
            cut.bytes,
            cut.head_flops,
            cut.tail_flops,
        )
        assert (times.head_params, times.tail_params) == (cut.head_params, cut.tail_params)
        assert 0 < times.segment_s <= times.segment_p95_s
        assert 0 < times.head_s <= times.head_p95_s <= found.total_p95_s
        assert 0 < times.tail_s <= times.tail_p95_s <= found.total_p95_s
    heads = [c.head_s for c in found.cuts]
    assert heads == sorted(heads)


def test_chosen_cuts_threads_and_rows() -> None:
    before = torch.get_num_threads()
    found = profile(graph(), EXAMPLE, cuts=["2", graph().cut("5")], repeats=3, threads=1, rows=4)
    assert [c.name for c in found.cuts] == ["2", "5"]
    assert (found.threads, found.rows) == (1, 4)
    assert torch.get_num_threads() == before
    assert found.cut("5").head_s > 0
    with pytest.raises(PartitionError, match="not profiled; profiled: 2, 5"):
        found.cut("3")


def test_segments_of_any_kind_are_timed_in_turn() -> None:
    order: list[str] = []

    class Step(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.fc = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order.append(self.name)
            return self.fc(x)

    found = profile([Step("a"), Step("b")], torch.randn(3, 2), cuts=["middle"], warmup=1, repeats=2)
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(order) >= 2 * 3
    assert (found.rows, found.params) == (3, 12)
    with pytest.raises(PartitionError, match="2 segments have 1 borders, got 0"):
        profile([Step("a"), Step("b")], torch.randn(3, 2))


def test_repeats_give_way_to_the_budget() -> None:
    assert profile(graph(), EXAMPLE, warmup=0, repeats=500, budget_s=0.0).repeats == 3


def test_it_survives_json() -> None:
    assert Profile.from_json(measured().to_json()) == measured()


def test_scaling_divides_every_time_and_nothing_else() -> None:
    slow = measured().scaled(0.25, "a quarter")
    assert slow.device == "a quarter"
    assert slow.total_s == pytest.approx(4 * measured().total_s)
    for one, other in zip(measured().cuts, slow.cuts, strict=True):
        for name, value in dataclasses.asdict(one).items():
            expected = 4 * value if name.endswith("_s") else value
            assert getattr(other, name) == (pytest.approx(expected) if name.endswith("_s") else expected)
    assert "scaled by 2" in measured().scaled(2.0).device
    with pytest.raises(ValueError, match="flops_ratio"):
        measured().scaled(0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("threads", -1),
        ("threads", 1.5),
        ("total_s", "1"),
        ("total_s", -1.0),
        ("device", 3),
        ("cuts", {}),
        ("cuts", [{}]),
        ("unknown", 1),
    ],
)
def test_a_document_that_is_no_profile_is_refused(field: str, value: Any) -> None:
    document = json.loads(measured().to_json())
    document[field] = value
    with pytest.raises(BundleError):
        Profile.from_json(json.dumps(document))


def test_text_that_is_no_profile_is_refused() -> None:
    for text in ("", "[]", "{", '{"schema": 1}', '{"schema": 1, "cuts": []}', "[" * 100_000):
        with pytest.raises(BundleError):
            Profile.from_json(text)
