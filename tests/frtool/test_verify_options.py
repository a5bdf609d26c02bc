"""Which judges a search has, and which options contradict each other."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from frtool.cli.app import run
from frtool.config import SearchConfig
from frtool.errors import UsageError
from frtool.session import Session

PUZZLE = "Make 24 from 4, 5, 6, 10"


@pytest.mark.parametrize(
    ("options", "scorer", "verify"),
    [
        ({}, "auto", "auto"),
        ({"reward_model": "d"}, "prm", "auto"),
        ({"verify_command": "true"}, "auto", "command"),
        ({"expected": "24"}, "auto", "math"),
        ({"verify_command": "true", "expected": "1", "verify": "command", "scorer": "math"}, "math", "command"),
        ({"verify_command": "true", "verify": "none", "scorer": "command"}, "command", "none"),
        ({"verify_command": "true", "scorer": "arithmetic"}, "arithmetic", "command"),
    ],
)
def test_what_is_given_says_what_is_wanted(options: dict[str, Any], scorer: str, verify: str) -> None:
    config = SearchConfig(prompt=PUZZLE, **options).resolved()
    assert (config.scorer, config.verify) == (scorer, verify)
    assert config.resolved() == config


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scorer": "prm"}, "--scorer prm needs a reward model"),
        ({"reward_model": "d", "scorer": "logprob"}, "--reward-model has no use with --scorer logprob"),
        ({"reward_preset": "math-shepherd"}, "--reward-preset needs --reward-model"),
        ({"verify": "command"}, "--verify command needs --verify-command"),
        ({"scorer": "command"}, "--scorer command needs --verify-command"),
        ({"verify": "math"}, "--verify math needs --expected"),
        ({"scorer": "math"}, "--scorer math needs --expected"),
        ({"verify": "none", "expected": "1"}, "--expected has no use with --verify none"),
        ({"verify": "arithmetic", "verify_command": "true"}, "--verify-command has no use with --verify arithmetic"),
        ({"expected": "1", "verify_command": "true"}, "ask for two verifiers"),
        ({"verify_seconds": 0.0}, "--verify-seconds is 0"),
        ({"verify_seconds": float("nan")}, "--verify-seconds is nan"),
        ({"verify": "oracle"}, "--verify `oracle` is unknown"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SearchConfig(prompt=PUZZLE, **options).resolved()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"verify_command": "no-such-program-here"}, "no program `no-such-program-here`"),
        ({"reward_model": "d/e", "reward_preset": "no-such"}, "--reward-preset `no-such` is unknown"),
        ({"reward_model": "somebody/prm"}, "which convention"),
        ({"scorer": "arithmetic", "prompt": "Why?", "model": "/no/model"}, "needs an arithmetic puzzle"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_loads(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import frtool.models.load

    monkeypatch.setattr(frtool.models.load, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match=text):
        Session.open(SearchConfig(**({"prompt": PUZZLE} | options)))


def test_the_command_line_passes_the_judges_on(
    fake_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[SearchConfig] = []
    session = sys.modules["frtool.session"].Session
    begin = session.__init__

    def remember(self: object, config: SearchConfig) -> None:
        seen.append(config)
        begin(self, config)

    monkeypatch.setattr(session, "__init__", remember)
    code = run(["search", PUZZLE, "-q", "--reward-model", "d", "--reward-preset", "rstar", "--verify-command", "true x",
                "--verify-seconds", "2.5"])  # fmt: skip
    assert code in (0, 3), capsys.readouterr().err
    (config,) = seen
    assert (config.reward_model, config.reward_preset, config.scorer) == ("d", "rstar", "prm")
    assert (config.verify_command, config.verify_seconds, config.verify) == ("true x", 2.5, "command")


def test_the_help_names_every_judge(capsys: pytest.CaptureFixture[str]) -> None:
    run(["search", "--help"])
    text = capsys.readouterr().out
    for option in ("--reward-model", "--reward-preset", "--verify-command", "--verify-seconds", "--expected"):
        assert option in text
