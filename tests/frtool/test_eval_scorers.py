"""Evaluations whose searches are judged by something else than the model's own reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frtool.cli.app import run as frtool

CALL = [
    "eval",
    "game24",
    "--algorithms",
    "beam",
    "--budgets",
    "8",
    "--limit",
    "2",
    "-q",
    "--device",
    "cpu",
    "--json",
    "--no-plot",
]
PRESET = (
    'prompt = "{question}\\n"\nlayout = "text"\nread_at = "tag"\nstep_tag = " #"\ngood_token = "+"\n'
    'bad_token = "-"\nhead = "lm"\n'
)


def row(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert frtool([*CALL, *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    return dict(found)


def test_a_reward_model_reads_the_steps_of_every_problem(byte_model: Path, tmp_path: Path, capsys: Any) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(PRESET)
    own = row(capsys)
    judged = row(
        capsys, "--reward-model", str(byte_model), "--reward-preset", str(preset), "--out", str(tmp_path / "o")
    )
    assert judged["failed"] == 0
    # It reads whole texts of steps, where the model's own reward takes one token a step.
    assert judged["scorer_tokens"] > 3 * own["scorer_tokens"] > 0
    settings = json.loads((tmp_path / "o" / "settings.json").read_text())
    assert settings["search"]["reward_model"] == str(byte_model)


def test_log_probability_costs_no_scorer_tokens(capsys: Any) -> None:
    assert row(capsys, "--scorer", "logprob")["scorer_tokens"] == 0


def test_a_verifier_is_no_scorer_of_an_evaluation(capsys: Any) -> None:
    assert frtool([*CALL, "--scorer", "arithmetic"]) == 2
    said = capsys.readouterr().err
    assert "--scorer arithmetic would show the search the right answer" in said
