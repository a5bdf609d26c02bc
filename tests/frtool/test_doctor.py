"""What the doctor finds, and what it says where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frtool import __version__
from frtool.cli.app import run
from frtool.doctor import machine, versions
from frtool.doctor.check import FAILED, OK, WARNING


def frtool(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = run(list(argv))
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def test_doctor_names_versions_machine_and_variables(capfd, monkeypatch):
    monkeypatch.setenv("FRTOOL_NO_PROGRESS", "1\x1b[2J")
    monkeypatch.setenv("HF_TOKEN", "secret")
    status, out, err = frtool(capfd, "doctor", "--quick")
    assert status in (0, 1)
    assert err == ""
    for word in ("frtool", __version__, "torch", "transformers", "processor", "memory", "GPU", "hub cache"):
        assert word in out
    assert "FRTOOL_NO_PROGRESS" in out
    assert "\x1b" not in out
    assert "secret" not in out
    record = json.loads(frtool(capfd, "doctor", "--quick", "--json")[1])
    assert {check["name"] for check in record["checks"]} >= {"frtool", "python", "torch", "processor", "memory"}


def test_kernel_agrees_with_the_reference_in_the_interpreter():
    checks = {check.name: check for check in machine.check_kernel()}
    assert checks["attention in torch"].status == OK
    if "Triton kernel, interpreted" in checks:
        assert checks["Triton kernel, interpreted"].status == OK


def test_kernel_that_dies_or_is_wrong_is_a_failure(monkeypatch, tmp_path):
    program = tmp_path / "python"
    for script, said in (
        ("echo oops >&2; exit 1", "oops"),
        ("kill -9 $$", "exit status -9"),
        ("echo nonsense", "exit status 0"),
        ("echo '{\"distance\": 0.5}'", "within 0.5"),
        ("echo '{\"distance\": NaN}'", "within nan"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        check = next(machine.check_kernel())
        assert check.status == FAILED, script
        assert said in check.text


def test_versions_out_of_range_warn_and_missing_ones_fail(monkeypatch):
    have = {"torch": "2.1.0", "rich": None, "numpy": "2.4.6+local"}
    monkeypatch.setattr(versions, "installed", lambda name: have.get(name, "999999"))
    bounds = {"torch": [(">=", "2.11"), ("<", "2.14")], "rich": [(">=", "14")], "numpy": [(">=", "2.0")]}
    monkeypatch.setattr(versions, "_requirements", lambda: iter(bounds.items()))
    found = {check.name: check for check in versions.check_versions()}
    assert found["torch"].status == WARNING
    assert ">= 2.11 and < 2.14" in found["torch"].text
    assert found["rich"].status == FAILED
    assert found["numpy"].status == OK


def test_every_requirement_of_the_installation_is_looked_at():
    names = {check.name for check in versions.check_versions()}
    assert {"torch", "transformers", "safetensors", "numpy", "typer", "rich"} <= names
    assert "pytest" not in names


def test_source_folder_that_others_would_take_for_their_package_is_named(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    check = versions.check_kernels_clash()
    assert check.status == WARNING
    assert check.hint


def test_failure_gives_exit_status_one(capfd, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda name: None)
    status, out, _ = frtool(capfd, "doctor", "--quick")
    assert status == 1
    assert "FAILED" in out


def test_doctor_works_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "frtool", "doctor", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "libtorch is broken" in done.stdout
    assert "Traceback" not in done.stderr
