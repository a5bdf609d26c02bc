"""The page of all commands and options: `python -m frtool.cli.reference > docs/commands.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

_HEAD = """# Commands

Every command with its options, as `--help` has them. This page is made by `python -m frtool.cli.reference`.

Before any command: `--verbose` (`-v`) shows tracebacks of what nobody expected, `--version` the version, and
`--install-completion` teaches your shell the names of commands and options.
"""


def reference() -> str:
    """The page as Markdown."""
    from .app import app

    command: Any = typer.main.get_command(app)
    return "\n".join([_HEAD, *_sections(command, "frtool"), _algorithms()])


def _algorithms() -> str:
    from frtool.search.registry import ALGORITHMS

    lines = ["## Algorithms", "", "Their options are given as `-o name=value`.", ""]
    lines += ["| algorithm | option | what it does | default |", "|---|---|---|---|"]
    for name, options in ALGORITHMS.items():
        rows = [
            (f"`{o.name}`", _prose(o.help), "auto" if o.default is None else f"`{o.default}`") for o in options.values()
        ]
        for i, row in enumerate(rows or [("", "", "")]):
            lines.append(f"| {'' if i else f'`{name}`'} | {' | '.join(map(_cell, row))} |")
    return "\n".join(lines) + "\n"


def _sections(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _sections(command, f"{path} {name}")
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([path, name, *(_metavar(p) for p in arguments)])
        lines = [f"## `{usage}`", "", _prose(command.help or ""), ""]
        lines += [f"- `{_metavar(p)}`: {_prose(p.help)}" for p in arguments if getattr(p, "help", None)]
        lines += [*([""] if lines[-1] else []), "| option | what it does | default |", "|---|---|---|"]
        lines += [_row(p) for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
        yield "\n".join(lines) + "\n"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    value = f" `{option.metavar}`" if option.metavar else ""
    silent = option.default is None or option.default is False or callable(option.default)
    default = "" if silent else f"`{option.default}`"
    return f"| {names}{_cell(value)} | {_cell(_prose(option.help or ''))} | {_cell(default)} |"


def _prose(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
