"""What the manual says, held to what the program does."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from frtool.cli.app import app, run
from frtool.cli.reference import reference
from frtool.scoring.preset import parse_preset

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_OTHERS = {"--no-deps"}
"""Options in the manual of programs that are not ours."""


def blocks(language: str) -> list[Any]:
    """The fenced blocks of all pages in one language."""
    return [
        pytest.param(match[1], id=f"{page.name}:{page.read_text()[: match.start()].count(chr(10)) + 1}")
        for page in PAGES
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


def every_command(group: Any, path: str = "frtool") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        here = f"{path} {name}"
        found |= {here: command} | (every_command(command, here) if hasattr(command, "commands") else {})
    return found


COMMANDS = every_command(typer.main.get_command(app))


def test_page_of_commands_is_that_of_the_program():
    """To make it anew: `python -m frtool.cli.reference > docs/commands.md`."""
    assert (ROOT / "docs" / "commands.md").read_text() == reference()


def test_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_manual_exists(page):
    known = {flag for command in COMMANDS.values() for p in command.params for flag in p.opts}
    known |= {flag for p in typer.main.get_command(app).params for flag in p.opts} | {"--help"} | OF_OTHERS
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text()))
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_blocks_are_calls_that_the_program_takes(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for line in block.replace("\\\n", " ").splitlines():
        for call in re.split(r"&&|\|", line.partition(" #")[0]):
            words = shlex.split(call)
            if words[:1] != ["frtool"]:
                continue
            command: Any = typer.main.get_command(app)
            path, rest = ["frtool"], words[1:]
            while hasattr(command, "commands") and rest and rest[0] in command.commands:
                path.append(rest.pop(0))
                command = command.commands[path[-1]]
            context = command.make_context(" ".join(path), rest, resilient_parsing=False)
            context.close()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_are_python(block):
    ast.parse(block)


@pytest.mark.parametrize("block", blocks("toml"))
def test_presets_in_the_manual_are_presets(block):
    table = tomllib.loads(block)
    if "layout" in table:
        assert parse_preset("manual", table).prompt


def test_scorer_in_the_manual_solves_its_puzzle(capfd):
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "scorer.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    assert names["result"].verified is True
    assert names["result"].score is not None
    assert "True" in capfd.readouterr().out


def section(title: str) -> str:
    return (ROOT / "README.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def calls(text: str) -> list[list[str]]:
    """The calls of frtool in the shell blocks of a text, without the name."""
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    words = [shlex.split(call) for line in lines for call in line.partition(" #")[0].split("&&")]
    return [call[1:] for call in words if call[:1] == ["frtool"]]


def test_first_command_of_the_readme_solves_its_puzzle(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    [call] = calls(section("Start"))
    assert run(call) == 0
    out, err = capfd.readouterr()
    shown = re.findall(r"^```text\n(.*?)^```", section("Start"), re.DOTALL | re.MULTILINE)[0].splitlines()
    assert len(out.splitlines()) == 1
    assert "verified" in err
    # Figures differ from machine to machine, the kinds of lines do not.
    assert [line.partition(" ")[0] for line in shown if line.startswith(("KV peak", "✓"))] == [
        line.partition(" ")[0] for line in err.splitlines() if line.startswith(("KV peak", "✓"))
    ]


def test_results_are_kept_shown_replayed_and_compared_as_the_readme_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    search, *others = calls(section("Keeping results"))
    assert search[0] == "search"
    assert run(search) == 0
    trace = (tmp_path / "run.jsonl").read_bytes()
    (tmp_path / "other.jsonl").write_bytes(trace)
    for call in others:
        assert run(call) == 0, call
        assert capfd.readouterr().err.count("error:") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.jsonl", "other.jsonl", "run.html", "run.svg"}
    assert (tmp_path / "run.jsonl").read_bytes() == trace
