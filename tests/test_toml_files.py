"""A file that is missing, no text, no TOML or far too large is one clear error, whoever reads it."""

import pytest

from splitedge.config import load_settings
from splitedge.errors import ConfigError
from splitedge.sim.grid import read_sweep
from splitedge.sim.language_scenario import LanguageScenario
from splitedge.sim.scenario import Scenario

READERS = (load_settings, Scenario.read, LanguageScenario.read, read_sweep)
WRONG = {
    "missing": (None, "can not be read: No such file or directory"),
    "no text": (b"\xff\xfe\x00", "is not valid TOML"),
    "no TOML": (b"a: 1", "is not valid TOML"),
    "too large": (b"#" * (1 << 20) + b"\n", "is larger than"),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__qualname__)
@pytest.mark.parametrize(("content", "says"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_toml_is_a_clear_error(reader, content, says, tmp_path):
    file = tmp_path / "some.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as raised:
        reader(file)
    assert str(raised.value).count("some.toml") == 1
