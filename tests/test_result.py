"""A result is its record, told to the caller."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from splitedge.policy import Route
from splitedge.record import Record
from splitedge.result import Result


def test_a_result_says_what_its_record_says():
    record = Record(
        7, 1.0, option="split:a/int8:1", route="split", level=1, reason="fast link", confidence=0.9,
        latency_s=0.5, head_s=0.01, encode_s=0.02, uplink_s=0.1, queue_s=0.03, decode_s=0.04, tail_s=0.05,
        downlink_s=0.06, bytes_up=100, bytes_down=50, energy_j=0.3, degraded=True,
    )  # fmt: skip
    output = torch.ones(1)
    result = Result.of(output, record)
    assert result.output is output
    assert result.record is record
    assert result.route is Route.SPLIT
    assert (result.option, result.level, result.confidence) == ("split:a/int8:1", 1, 0.9)
    assert (result.degraded, result.reason) == (True, "fast link")
    assert (result.bytes_up, result.bytes_down, result.energy_j) == (100, 50, 0.3)
    assert dataclasses.astuple(result.timing) == (0.01, 0.02, 0.1, 0.03, 0.04, 0.05, 0.06, 0.5)


def test_a_failed_request_makes_no_result():
    with pytest.raises(ValueError, match="request 3 has no answer \\(DeadlineExceeded\\)"):
        Result.of(None, Record(3, 0.0, error="DeadlineExceeded"))


def test_results_can_not_be_changed():
    result = Result.of(1, Record(1, 0.0, route="local"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.route = Route.CLOUD
