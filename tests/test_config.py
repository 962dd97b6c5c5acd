"""Settings: file, environment, command line, in rising precedence; unknown keys named."""

import pytest

from splitedge.config import load_settings
from splitedge.errors import ConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("SPLITEDGE_ENGINE__MARGIN_S", "SPLITEDGE_EDGE__HTTP"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_need_no_file():
    settings = load_settings()
    assert settings.engine.max_in_flight > 0
    assert settings.cloud.listen.startswith("tcp://127.0.0.1")


def test_precedence_rises_from_file_to_environment_to_command_line(tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('[engine]\nmargin_s = 0.001\nmax_in_flight = 7\n[edge]\nhttp = "127.0.0.1:1"\n')
    assert load_settings(file).engine.margin_s == 0.001
    monkeypatch.setenv("SPLITEDGE_ENGINE__MARGIN_S", "0.002")
    monkeypatch.setenv("SPLITEDGE_EDGE__HTTP", "127.0.0.1:2")
    settings = load_settings(file, {"edge": {"http": "127.0.0.1:3"}})
    assert settings.engine.margin_s == 0.002
    assert settings.engine.max_in_flight == 7  # the file's, untouched by the others
    assert settings.edge.http == "127.0.0.1:3"


def test_none_from_the_command_line_leaves_the_file_alone(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[edge]\nhttp = "127.0.0.1:1"\n')
    assert load_settings(file, {"edge": {"http": None}}).edge.http == "127.0.0.1:1"


def test_splitedge_toml_of_the_working_directory_is_read(tmp_path):
    (tmp_path / "splitedge.toml").write_text("[engine]\nmax_in_flight = 9\n")
    assert load_settings().engine.max_in_flight == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engine]\nmax_in_fligt = 3\n", ("max_in_fligt", "max_in_flight")),
        ("[engin]\nmargin_s = 3\n", ("engin", "engine")),
        ("[engine]\nmargin_s = 'soon'\n", ("engine.margin_s", "soon")),
        ("[engine\n", ("TOML",)),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch):
    monkeypatch.setenv("SPLITEDGE_ENGINE__MARGIN", "1")
    with pytest.raises(ConfigError, match="margin_s"):
        load_settings()


def test_an_unknown_section_in_a_variable_is_refused(monkeypatch):
    monkeypatch.setenv("SPLITEDGE_ENGNE__MARGIN_S", "1")
    with pytest.raises(ConfigError, match="engine"):
        load_settings()


def test_a_missing_file_is_an_error_only_if_it_was_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        load_settings(tmp_path / "nowhere.toml")
