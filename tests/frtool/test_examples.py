"""The examples of one's own scorer, algorithm and verifier run as they stand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import frtool
from frtool.search.protocols import Algorithm, Scorer, Verifier

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports an example, whose searches take the model that is loaded already."""
    monkeypatch.setattr("frtool.models.load.load_model", lambda *_, **__: loaded)

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def loaded() -> Any:
    return frtool.load_model("embedded", device="cpu")


def test_own_scorer(example: Callable[[str], Any]) -> None:
    module = example("own_scorer")
    scorer: Scorer = module.RightSteps()
    assert [module.is_right(text) for text in ("6*5=30 (4 10 30)\n", "6*5=31 (4 10 31)\n", "10/4=2 (2)\n", "?")] == [
        *(True, False, False),
        False,
    ]
    found = module.main()
    assert found.config["scorer"] == scorer.name
    assert found.verified
    assert found.score is not None
    assert 0 < found.score <= 1
    wrong = [node for node in found.tree.walk() if node.parent is not None and not module.is_right(node.text)]
    assert all(node.reward == 0 for node in wrong)


def test_own_algorithm_and_verifier(example: Callable[[str], Any]) -> None:
    module = example("own_algorithm")
    algorithm: Algorithm = module.DepthFirst()
    verifier: Verifier = module.NoDivision("Make 24 from 4, 5, 6, 10")
    assert verifier.verify("6*5-10+4")
    assert not verifier.verify("6/5*10*4/2")
    found = module.main()
    assert found.config["algorithm"] == algorithm.name
    assert found.config["verify"] == verifier.name
    assert found.reason in ("accepted", "exhausted", "steps")
    assert found.verified is verifier.verify(found.answer)
    again = module.main()
    assert [node.text for node in again.tree.walk()] == [node.text for node in found.tree.walk()]


def test_many_prompts(example: Callable[[str], Any]) -> None:
    results = example("many_prompts").main()
    assert sorted(result.question.prompt for result in results) == [f"Make {n} from 3, 4, 6, 9" for n in (24, 30, 36)]
    assert all(result.error is None and result.answer for result in results)
