"""`frtool doctor`: what a report about a fault should begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frtool.errors import UsageError

from .errors import FAILED
from .settings import Settings, read_settings
from .show import print_text

if TYPE_CHECKING:
    from frtool.doctor.check import Check

_MARKS = {"ok": "ok", "note": "", "warning": "WARNING", "failed": "FAILED"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the kernel's self-test.")] = False,
) -> int:
    """Check the installation and the machine, in a form to paste into a report. Exit status 1 where something fails."""
    from frtool.view.safe import safe_json

    checks = list(_checks(quick))
    if json:
        print_text(safe_json({"checks": [asdict(check) for check in checks]}, indent=2) + "\n")
    else:
        print_text(_report(checks))
    return FAILED if any(check.status == "failed" for check in checks) else 0


def _checks(quick: bool) -> Iterator[Check]:
    from frtool.doctor.check import FAILED as BAD
    from frtool.doctor.check import Check
    from frtool.doctor.machine import check_kernel, check_machine
    from frtool.doctor.setup import check_models, check_scratch, check_variables
    from frtool.doctor.versions import check_kernels_clash, check_versions

    yield from check_versions()
    yield check_kernels_clash()
    yield from check_machine()
    if not quick:
        yield from check_kernel()
    yield check_scratch()
    yield from check_models()
    settings = None
    try:
        settings = read_settings(_commands())
    except UsageError as error:
        yield Check("configuration", BAD, error.message, error.hint)
    if settings is not None:
        yield from _settings(settings)
    yield from check_variables(settings.unknown if settings else ())


def _commands() -> dict[str, Any]:
    from .app import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def _settings(settings: Settings) -> Iterator[Check]:
    """The file, and what it and the variables set; a variable hides the same line of the file."""
    from frtool.doctor.check import NOTE, Check

    exists = settings.path.is_file()
    yield Check("configuration", NOTE, f"{settings.path}{'' if exists else ', which does not exist'}")
    for (command, name), source in settings.origins.items():
        value = settings.defaults[command][name]
        text = " ".join(value) if isinstance(value, list) else value
        yield Check(f"{command} --{name.replace('_', '-')}", NOTE, f"{text}, from {source}")
    for name, model in settings.aliases.items():
        yield Check(f"alias {name}", NOTE, model)


def _report(checks: list[Check]) -> str:
    from .table import table

    rows: list[Any] = []
    for check in checks:
        rows.append((check.name, _MARKS[check.status], check.text))
        if check.hint:
            rows.append(("", "", f"hint: {check.hint}"))
    return table(rows)
