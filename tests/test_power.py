"""The power model's arithmetic, its profiles, and meters of what may not be there."""

from __future__ import annotations

import math

import pytest

from splitedge.errors import ConfigError, UnknownName
from splitedge.power import PROFILES, PowerModel, RaplMeter, SystemBattery, power_profile


def test_joules_are_watts_times_seconds_and_bits():
    model = PowerModel(compute_w=4.0, j_per_bit_up=2e-6, j_per_bit_down=1e-6)
    assert model.joules(0.5, 1000, 500) == pytest.approx(4.0 * 0.5 + 8 * (1000 * 2e-6 + 500 * 1e-6))


def test_a_tail_is_paid_once_for_transfers_close_together():
    model = PowerModel(tail_w=0.5, tail_s=2.0, idle_w=3.0)
    assert model.tail_joules(math.inf) == 1.0
    gaps = [math.inf, 0.1, 0.1, 10.0]
    assert sum(model.tail_joules(gap) for gap in gaps) == pytest.approx(0.5 * (2.0 + 0.1 + 0.1 + 2.0))
    assert model.tail_joules(-1.0) == 0.0
    assert model.idle_joules(10.0) == 30.0


def test_measured_slopes_of_the_radios():
    assert power_profile("phone-lte").j_per_bit_up == pytest.approx(77e-9, rel=0.01)
    assert power_profile("phone-5g-low").j_per_bit_up == pytest.approx(32.17e-9)
    assert power_profile("phone-5g-mmwave").j_per_bit_down == pytest.approx(1.73e-9)


def test_every_profile_says_what_is_measured_and_what_is_assumed():
    for name, model in PROFILES.items():
        assert model.name == name
        if name != "none":
            assert "measured" in model.source
            assert "assumed" in model.source


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(UnknownName, match="phone-lte"):
        power_profile("phone-6g")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_profile_that_makes_no_sense_is_refused(value):
    with pytest.raises(ConfigError, match="compute_w"):
        PowerModel(compute_w=value)


def test_battery_is_a_fraction_or_nan():
    fraction = SystemBattery().fraction()
    assert math.isnan(fraction) or 0.0 <= fraction <= 1.0


def test_battery_on_mains_is_nan(monkeypatch):
    class State:
        percent, power_plugged = 55.0, False

    monkeypatch.setattr("psutil.sensors_battery", State, raising=False)
    assert SystemBattery().fraction() == pytest.approx(0.55)
    State.power_plugged = True
    assert math.isnan(SystemBattery().fraction())


def write_zone(root, name, value, span=1_000_000_000):
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(str(value))
    (root / name / "max_energy_range_uj").write_text(str(span))


def test_rapl_sums_the_packages_and_survives_a_wrap(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", 999_000_000)
    write_zone(tmp_path, "intel-rapl:1", 0)
    write_zone(tmp_path, "intel-rapl:0:0", 0)  # a part of package 0: not counted again
    meter = RaplMeter(tmp_path)
    assert meter.available
    write_zone(tmp_path, "intel-rapl:0", 1_000_000)
    write_zone(tmp_path, "intel-rapl:1", 3_000_000)
    write_zone(tmp_path, "intel-rapl:0:0", 5_000_000)
    assert meter.joules() == pytest.approx(2.0 + 3.0)


def test_rapl_that_is_not_there_is_nan(tmp_path):
    assert not RaplMeter(tmp_path).available
    assert math.isnan(RaplMeter(tmp_path).joules())
