"""Arguments of policies: what stands behind the colon, in a text or in the configuration file."""

import pytest
from policy_cases import TABLE

from splitedge.config import load_settings
from splitedge.errors import ConfigError, PolicyError
from splitedge.policy import Policy, make_policy
from splitedge.policy_argument import read_argument


class Sample(Policy):
    name = "sample"

    def __init__(
        self, amount: float = 0.5, count: int = 3, quiet: bool = False, mode: str = "fair", other=None
    ):
        self.told = (amount, count, quiet, mode)

    def decide(self, obs):
        raise NotImplementedError

    explain = decide


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("", {}),
        ("0.2", {"amount": 0.2}),
        ("0.2,count=4", {"amount": 0.2, "count": 4}),
        ("amount=1e-3, quiet=on", {"amount": 0.001, "quiet": True}),
        ("quiet=false,mode=(a,b=1)", {"quiet": False, "mode": "a,b=1"}),
        ("mode=x:(y,z)", {"mode": "x:(y,z)"}),
    ],
)
def test_values_are_read_by_the_type_of_their_default(text, found):
    assert read_argument(Sample, text, main="amount") == found
    Sample(**found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("amout=1", "has no 'amout'. Did you mean 'amount'\\? It takes amount, count, quiet, mode"),
        ("no=1", "has no 'no'"),
        ("0.1,amount=2", "'amount' is given twice"),
        ("count=1.5", "takes a whole number for 'count'; got '1.5'"),
        ("quiet=maybe", "takes true or false for 'quiet'"),
        ("much", "takes a number for 'amount'; got 'much'"),
        ("0.1,0.2", "expected key=value, got '0.2'"),
        ("0.1,", "expected key=value, got ''"),
        ("mode=(a", "brackets"),
        ("mode=a)", "brackets"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_keys_there_are(text, message):
    with pytest.raises(PolicyError, match=message):
        read_argument(Sample, text, main="amount")


def test_without_a_main_value_a_bare_one_is_refused():
    with pytest.raises(PolicyError, match="expected key=value, got '1'"):
        read_argument(Sample, "1")


@pytest.mark.parametrize("name", ["deadline", "latency", "confidence", "dads", "spinn", "energy", "ensemble"])
def test_every_policy_names_its_keys(name):
    with pytest.raises(PolicyError, match=f"policy '{name}' has no 'nonsense'. It takes [a-z_]+"):
        make_policy(f"{name}:nonsense=1", TABLE)


def settings_of(tmp_path, text):
    file = tmp_path / "edge.toml"
    file.write_text(text)
    return load_settings(file).edge.policy


def test_a_configuration_file_names_a_policy_by_text_or_by_table(tmp_path):
    assert settings_of(tmp_path, "[edge]\npolicy = 'deadline:0.02,low=0.3'\n") == "deadline:0.02,low=0.3"
    table = "[edge.policy]\nname = 'deadline'\ntolerance = 0.02\nlow = 0.3\n"
    policy = make_policy(settings_of(tmp_path, table), TABLE)
    assert (policy.tolerance, policy.battery.low) == (0.02, 0.3)
    guard = "[edge.policy]\nname = 'ensemble'\npolicy = 'energy:0.05,v=20'\nhold = 5\n"
    policy = make_policy(settings_of(tmp_path, guard), TABLE)
    assert (policy.hold, policy.inner.v) == (5.0, 20.0)
    assert settings_of(tmp_path, "[edge.policy]\nname = 'latency'\n") == "latency"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("low = 0.3", "a policy's table needs its name"),
        ("name = 'deadline'\nlow = [1]", "'low' of a policy must be"),
    ],
)
def test_a_table_that_makes_no_policy_is_refused(tmp_path, table, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(tmp_path, f"[edge.policy]\n{table}\n")
