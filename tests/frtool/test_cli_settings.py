"""Defaults from the configuration file and from variables: which one wins, and what is said of a bad one."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from frtool.cli.app import run

PUZZLE = "Make 24 from 4, 5, 6, 10"

pytestmark = pytest.mark.usefixtures("fake_session")


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    path = tmp_path / "config.toml"
    monkeypatch.setenv("FRTOOL_CONFIG", str(path))
    path.write_text("")
    return path


def config(capfd, *argv: str) -> dict:
    status = run(["search", PUZZLE, "--json", *argv])
    out, err = capfd.readouterr()
    assert status == 0, err
    return json.loads(out)["config"]


def test_flags_beat_variables_and_variables_beat_the_file(file, capfd, monkeypatch):
    assert config(capfd)["nodes"] is None
    file.write_text('[search]\nnodes = 30\nalgorithm = "best-of-n"\nmax-depth = 5\n')
    found = config(capfd)
    assert (found["nodes"], found["algorithm"], found["max_depth"]) == (30, "best-of-n", 5)
    monkeypatch.setenv("FRTOOL_NODES", "40")
    assert config(capfd)["nodes"] == 40
    assert config(capfd, "--nodes", "50")["nodes"] == 50
    assert config(capfd, "--algorithm", "mcts")["algorithm"] == "mcts"


def test_flags_lists_and_numbers_are_read_as_on_the_command_line(file, capfd, monkeypatch):
    file.write_text(
        '[search]\nalgorithm = "mcts"\noffline = true\ntemperature = 0.5\noption = ["c_puct=2.5"]\n'
        'delimiter = "\\\\n"\n'
    )
    found = config(capfd)
    assert (found["offline"], found["temperature"], found["delimiter"]) == (True, 0.5, "\n")
    assert found["algorithm_options"] == {"c_puct": "2.5"}
    monkeypatch.setenv("FRTOOL_OFFLINE", "false")
    monkeypatch.setenv("FRTOOL_OPTION", "c_puct=3.5 widen=2")
    found = config(capfd)
    assert found["offline"] is False
    assert found["algorithm_options"] == {"c_puct": "3.5", "widen": "2"}


def test_alias_stands_for_a_model_and_leaves_other_names_alone(file, capfd):
    file.write_text('[aliases]\nsmall = "~/models/small.gguf"\n[search]\nmodel = "small"\n')
    assert config(capfd)["model"] == "~/models/small.gguf"
    assert config(capfd, "--model", "other")["model"] == "other"


@pytest.mark.parametrize(
    "call", [["eval", "game24", "--limit", "1", "-a", "greedy"], ["bench", "decode", "--batch-sizes", "1"]]
)
def test_every_command_that_loads_a_model_knows_the_aliases(file, capfd, call):
    file.write_text('[aliases]\nsmall = "./no-such-folder"\n')
    assert run([*call, "--model", "small"]) == 1
    assert "no-such-folder" in capfd.readouterr().err


def test_no_file_is_no_error_unless_one_was_named(file, capfd, monkeypatch):
    file.unlink()
    assert run(["search", PUZZLE]) == 2
    assert "which does not exist" in capfd.readouterr().err
    monkeypatch.delenv("FRTOOL_CONFIG")
    monkeypatch.setattr("typer.get_app_dir", lambda name: str(file.parent / "nowhere"))
    assert config(capfd)["nodes"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[search\n", "Expected"),
        ("tokens = 5\n", "outside of a section"),
        ("[serach]\n", "did you mean `search`?"),
        ("[search]\ntoken = 5\n", "did you mean `tokens`?"),
        ("[search]\nprompt = 'x'\n", "no option `prompt`"),
        ("[search]\ntokens = 'many'\n", "it comes from "),
        ("[search]\ntokens = 1.5\n", "it comes from "),
        ("[search]\ntokens = {a = 1}\n", "is a dict"),
        ("[aliases]\nx = 5\n", "no text"),
        ("[aliases]\nembedded = 'x'\n", "name of the embedded model"),
        ("\ufeff\x00", "configuration"),
        ("[search]\n" + "x = " + "[" * 3000, "configuration"),
    ],
)
def test_bad_file_gets_one_line(file, capfd, text, said):
    file.write_text(text, encoding="utf-8")
    status = run(["search", PUZZLE])
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert said in err


def test_unreadable_and_binary_files_get_one_line(file, capfd):
    file.write_bytes(bytes(range(256)))
    assert run(["search", PUZZLE]) == 2
    assert "not UTF-8" in capfd.readouterr().err
    file.unlink()
    file.mkdir()
    assert run(["search", PUZZLE]) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_help_version_and_doctor_work_whatever_the_file_says(file, capfd):
    file.write_text("[search\n")
    assert run(["--help"]) == 0
    assert run(["--version"]) == 0
    assert run(["search", "--help"]) == 0
    capfd.readouterr()
    assert run(["doctor", "--quick"]) == 1
    assert str(file) in capfd.readouterr().out


def test_doctor_shows_every_setting_and_its_source(file, capfd, monkeypatch):
    file.write_text('[search]\nnodes = 30\ntokens = 7\n[aliases]\nsmall = "x.gguf"\n')
    monkeypatch.setenv("FRTOOL_NODES", "40")
    monkeypatch.setenv("FRTOOL_NDOES", "50")
    run(["doctor", "--quick", "--json"])
    found = {check["name"]: check for check in json.loads(capfd.readouterr().out)["checks"]}
    assert found["search --nodes"]["text"] == "40, from FRTOOL_NODES"
    assert found["search --tokens"]["text"] == f"7, from {file}"
    assert found["alias small"]["text"] == "x.gguf"
    assert found["FRTOOL_NDOES"]["status"] == "warning"


def test_bad_variable_is_named(file, capfd, monkeypatch):
    monkeypatch.setenv("FRTOOL_TOKENS", "many")
    assert run(["search", PUZZLE]) == 2
    assert capfd.readouterr().err.endswith("hint: it comes from FRTOOL_TOKENS\n")


class TestConfigOption:
    """`--config FILE.toml`: before the variables and the user's own file, behind the flags."""

    def test_flags_beat_it_and_it_beats_all_else(self, file, tmp_path, capfd, monkeypatch):
        file.write_text("[search]\nnodes = 30\nsteps = 70\nseed = 1\n")
        monkeypatch.setenv("FRTOOL_STEPS", "80")
        own = tmp_path / "own.toml"
        own.write_text('nodes = 40\nsteps = 90\nalgorithm = "mcts"\n[option]\nc_puct = 1.5\nwiden = 3\n')
        found = config(capfd, "--config", str(own))
        assert [found[name] for name in ("nodes", "steps", "seed", "algorithm")] == [40, 90, 1, "mcts"]
        assert found["algorithm_options"] == {"c_puct": "1.5", "widen": "3"}
        assert config(capfd, "--config", str(own), "--nodes", "50")["nodes"] == 50

    def test_a_section_names_its_command_and_others_are_left_alone(self, file, tmp_path, capfd):
        own = tmp_path / "own.toml"
        own.write_text('[search]\nnodes = 40\nmodel = "s"\n[eval]\nlimit = 3\n[aliases]\ns = "somewhere"\n')
        found = config(capfd, "--config", str(own))
        assert (found["nodes"], found["model"]) == (40, "somewhere")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("nodes = ", "Invalid value"),
            ("magic = 3", "no option `magic`"),
            ("[magic]\nnodes = 3", "[search] has no option `magic`"),
            ("[eval]\nmagic = 3", "[eval] has no option `magic`"),
            ('nodes = "many"', "nodes"),
            ("nodes = [1, 2]", "`nodes` is a list"),
            ("nodes = {a = 1}", "`nodes` is a dict"),
            ("nodes = -1", "--nodes is -1"),
            ("[option]\nmagic = 1", "does not use the option"),
            ("[aliases]\ns = 3", "the alias `s` is no text"),
            ("search = 3", "outside of a section"),
            ("config = 'other.toml'", "no option `config`"),
            ("\x00", "configuration"),
        ],
    )
    def test_a_bad_file_is_one_line_that_names_it(self, file, tmp_path, capfd, text, said):
        own = tmp_path / "own.toml"
        own.write_text(text)
        assert run(["search", PUZZLE, "--config", str(own)]) == 2
        err = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("frtool: ")]
        assert len(err) <= 2
        assert said in err[0]
        assert "own.toml" in "".join(err) or text in ("nodes = -1", "[option]\nmagic = 1")

    @pytest.mark.parametrize("name", ["none.toml", ".", "long.toml"])
    def test_a_file_that_cannot_be_read(self, file, tmp_path, capfd, name):
        (tmp_path / "long.toml").write_text("#" * (1 << 20) + "\n")
        assert run(["search", PUZZLE, "--config", str(tmp_path / name)]) == 2
        assert capfd.readouterr().err.startswith("error: ")
