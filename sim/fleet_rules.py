"""Records of what stays as it is in a run of fleet mode: options, answers, constants."""

from __future__ import annotations

import numpy as np

#: One option: of `Option`, times as `slower` makes them, and what its place in the table implies.
OPTION = np.dtype(
    [
        ("remote", "?"),
        ("on_head", "?"),  # whether its compute begins with the head's
        ("gated", "?"),  # whether it has a filter
        ("gate_exit", "i8"),  # the option whose answer that keeps, or NONE
        ("route", "i8"),  # code
        ("before", "i8"),  # exits on the way to it: those of depth below this
        ("depth", "i8"),  # of an exit; NONE for other options
        ("lane", "i8"),  # options of equal lanes may share a batch
        ("edge_s", "f8"),
        ("edge_q95_s", "f8"),
        ("cloud_s", "f8"),
        ("cloud_q95_s", "f8"),
        ("bytes_up_q95", "f8"),
        ("bytes_down", "f8"),
        ("accuracy", "f8"),
        ("edge_median_s", "f8"),  # what its seconds are drawn from
        ("edge_sigma", "f8"),
        ("cloud_median_s", "f8"),
        ("cloud_sigma", "f8"),
    ],
    align=True,
)

#: What an option says to a row.
ANSWER = np.dtype([("confidence", "f8"), ("message", "f8"), ("right", "?")], align=True)

#: Constants of a run, in seconds, joules, bytes: of `EngineSettings`, `PowerModel` and the scenario.
RULES = np.dtype(
    [
        ("timed", "?"),
        ("deadline_s", "f8"),
        ("margin_s", "f8"),
        ("slack_s", "f8"),
        ("timeout_s", "f8"),
        ("patience_s", "f8"),
        ("max_in_flight", "i8"),
        ("max_attempts", "i8"),
        ("overdue_factor", "f8"),
        ("overdue_min_s", "f8"),
        ("breaker_failures", "i8"),
        ("probe_base_s", "f8"),
        ("probe_max_s", "f8"),
        ("ping_s", "f8"),
        ("ping_idle_s", "f8"),
        ("ping_timeout_s", "f8"),
        ("retry_base_s", "f8"),
        ("retry_max_s", "f8"),
        ("retry_jitter", "f8"),
        ("heartbeat_s", "f8"),
        ("reconnect_s", "f8"),
        ("handshake_s", "f8"),
        ("hello_s", "f8"),
        ("beat_bytes", "f8"),
        ("echo_bytes", "f8"),
        ("hello_bytes", "f8"),
        ("welcome_bytes", "f8"),
        ("ping_bytes", "f8"),
        ("pong_bytes", "f8"),
        ("cancel_bytes", "f8"),
        ("refusal_bytes", "f8"),
        ("compute_w", "f8"),
        ("idle_w", "f8"),
        ("j_per_bit_up", "f8"),
        ("j_per_bit_down", "f8"),
        ("tail_w", "f8"),
        ("tail_s", "f8"),
        ("battery_j", "f8"),  # inf on mains
        ("battery_interval_s", "f8"),
        ("charge", "f8"),
        ("shared_cell", "?"),
        ("down_ahead_s", "f8"),  # by how much the downlink begins later in its trace
        ("back_s", "f8"),  # nor than this after it has left it
        ("lookahead_s", "f8"),  # no reply can come sooner than this after its message is in the cloud
        ("executors", "i8"),
        ("max_rows", "i8"),
        ("max_wait_s", "f8"),
        ("per_row", "f8"),
        ("queue_requests", "i8"),
        ("stage_s", "f8"),  # of the shells, see `ShellPart`
        ("send_s", "f8"),
        ("receive_s", "f8"),
        ("hand_s", "f8"),
        ("longest_s", "f8"),  # mean compute seconds of the longest way to an option
    ],
    align=True,
)
