"""The problems of an evaluation, what judges their answers, and the control."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest

from frtool.config import SearchConfig
from frtool.errors import UsageError
from frtool.eval.commands import judged_by_command
from frtool.eval.control import random_rollouts
from frtool.eval.items import ExactVerifier, NumericVerifier, number
from frtool.eval.plan import Plan
from frtool.eval.solve import is_solvable, successors
from frtool.eval.tasks import load_items
from frtool.tasks.held_out import is_held_out
from frtool.tasks.puzzle import Puzzle, parse_puzzle


def reaches(numbers: list[Fraction], target: int, whole: bool) -> bool:
    """Brute force over all expressions; `whole`: as the step text does, exact and not negative."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [value for k, value in enumerate(numbers) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        values = [a + b, a - b, a * b] + ([a / b] if b else [])
        for value in values:
            if whole and (value < 0 or value.denominator > 1):
                continue
            if reaches([*rest, value], target, whole):
                return True
    return False


def test_game24_is_the_hundred_puzzles_of_tree_of_thoughts() -> None:
    items = load_items("game24")
    assert [item.id for item in items] == [str(rank) for rank in range(901, 1001)]
    assert items[0].prompt == "Make 24 from 4, 5, 6, 10"
    for item in items:
        assert item.puzzle is not None
        assert parse_puzzle(item.prompt) == item.puzzle
        assert is_held_out(sorted(item.puzzle.numbers), 24)
        assert reaches(list(map(Fraction, item.puzzle.numbers)), 24, whole=False)
    assert items[0].verifier.verify("(10-4)*5-6")
    assert not items[0].verifier.verify("10+4+5+6")


def test_offset_and_limit_cut_the_same_list() -> None:
    ids = [item.id for item in load_items("game24")]
    assert [item.id for item in load_items("game24", offset=97, limit=9)] == ids[97:]
    with pytest.raises(UsageError, match="no problems"):
        load_items("game24", offset=100)


def test_countdown_puzzles_are_held_out_solvable_distinct_and_repeatable() -> None:
    items = load_items("countdown:numbers=3,low=2,high=20,targets=10-50,n=40,seed=5")
    assert len({item.id for item in items}) == 40
    for item in items:
        puzzle = item.puzzle
        assert puzzle is not None
        assert is_held_out(puzzle.numbers, puzzle.target)
        assert all(2 <= value <= 20 for value in puzzle.numbers)
        assert 10 <= puzzle.target <= 50
        assert reaches(list(map(Fraction, puzzle.numbers)), puzzle.target, whole=True)
    again = load_items("countdown:numbers=3,low=2,high=20,targets=10-50,n=60,seed=5", limit=40)
    other = load_items("countdown:numbers=3,low=2,high=20,targets=10-50,n=40,seed=6")
    assert [item.id for item in again] == [item.id for item in items]
    assert len({item.id for item in other} & {item.id for item in items}) < 20


@pytest.mark.parametrize("numbers", [(1, 1, 1), (2, 3, 7), (4, 5, 6, 10), (1, 1, 1, 9), (3, 3, 8, 8)])
@pytest.mark.parametrize("target", [3, 24, 40])
def test_solvable_agrees_with_brute_force(numbers: tuple[int, ...], target: int) -> None:
    assert is_solvable(numbers, target) == reaches(list(map(Fraction, numbers)), target, whole=True)


def test_reasoning_gym_counts_exact_answers_only() -> None:
    pytest.importorskip("reasoning_gym")
    countdown = load_items("reasoning-gym:countdown:n=3,seed=2")
    assert len(countdown) == 3
    for item in countdown:
        assert item.puzzle is not None
        assert is_held_out(sorted(item.puzzle.numbers), item.puzzle.target)
        assert not item.verifier.verify("1+1")
        assert not item.verifier.verify(f"{item.puzzle.target}")
        assert not item.verifier.verify("__import__('os').getcwd()")
    puzzle24 = load_items("reasoning-gym:puzzle24:n=3")
    assert all(not item.verifier.verify("4*6") for item in puzzle24)  # its own scorer would take it
    letters = load_items("reasoning-gym:letter_counting:n=2")
    assert letters[0].puzzle is None
    assert not letters[0].verifier.verify("no number")
    with pytest.raises(UsageError, match="no task nonsense"):
        load_items("reasoning-gym:nonsense")


def test_a_file_of_prompts_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "What is 6 times 7?", "answer": 42},
        {"prompt": "Capital of France?", "answer": "Paris", "id": "p"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = load_items(str(file))
    assert (first.id, second.id) == ("1", "p")
    assert first.verifier.verify("42.0")
    assert not first.verifier.verify("about 42")
    assert second.verifier.verify(" Paris ")
    assert load_items(f"{file}:check=exact")[0].verifier.verify("42")
    for broken in ("{", '{"prompt": "a"}', "[1]", '{"prompt": " ", "answer": 1}', '{"prompt": "a", "answer": "b"}'):
        file.write_text('{"prompt": "q", "answer": 1}\n' + broken + "\n")
        with pytest.raises(UsageError, match="line 2"):
            load_items(f"{file}:check=numeric")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("chess", "no task `chess`"),
        ("game24:x=1", "no task"),
        ("countdown:colour=3", "no option `colour`"),
        ("countdown:n=many", "no number"),
        ("countdown:n=0", "takes 2 to 6"),
        ("nowhere.jsonl", "cannot read"),
        ("nowhere.jsonl:check=magic", "check `magic`"),
    ],
)
def test_a_task_that_is_none_is_refused_by_name(task: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_items(task)


@pytest.mark.parametrize(
    ("text", "value"),
    [("42", 42), ("-3.50", Fraction(-7, 2)), ("$1,000", 1000), ("1/3", Fraction(1, 3)), ("12%", 12), ("7.", 7),
     ("1/0", None), ("1.5/2", None), ("x", None), ("", None), ("9" * 99, None)],
)  # fmt: skip
def test_numbers_are_exact(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def test_verifiers_of_known_answers() -> None:
    assert ExactVerifier("a  b").verify(" a b\n")
    assert NumericVerifier("0.5").verify("1/2")
    with pytest.raises(ValueError, match="no number"):
        NumericVerifier("half")


def test_the_control_draws_legal_steps_and_is_the_same_again() -> None:
    assert len(successors((1, 2, 4))) == 12
    assert set(successors((1, 2, 4))) == {(1, 2), (1, 4), (1, 6), (1, 8), (2, 3), (2, 4), (2, 5), (3, 4)}
    puzzle = Puzzle((1, 2, 4), 7)
    found = [random_rollouts(puzzle, 20, seed, "x") for seed in range(200)]
    assert found == [random_rollouts(puzzle, 20, seed, "x") for seed in range(200)]
    assert all(control.steps == 2 * control.rollouts <= 20 for control in found)
    assert 0.1 < sum(control.solved for control in found) / 200 < 1
    assert not random_rollouts(Puzzle((1, 1, 1), 24), 90, 0).solved
    assert random_rollouts(Puzzle((1, 1, 1, 1), 3), 1, 0).rollouts == 1  # never less than one


@pytest.mark.parametrize(("budget", "n", "keep"), [(1, 1, 1), (48, 16, 4), (160, 53, 13)])
def test_chains_and_beams_are_as_many_as_the_budget_pays_for(budget: int, n: int, keep: int) -> None:
    plan = Plan(("game24",), ("best-of-n", "beam", "mcts"), (budget,), SearchConfig("x", steps=1))
    (item,) = load_items("game24", limit=1)
    chains, beam, mcts = (plan.fitted(cell, item) for cell in plan.cells())
    assert chains == {"n": n}
    assert beam == {"keep": keep, "width": 4 * keep, "oversample": 1.0}
    assert mcts == {}
    assert budget < 48 or 3 * math.ceil(beam["width"] * beam["oversample"]) <= budget
    given = Plan(("game24",), ("beam",), (budget,), SearchConfig("x", steps=1), options={"beam": {"keep": 2}})
    assert given.fitted(given.cells()[0], item) == {"keep": 2}


def test_a_command_judges_in_place_of_the_task_and_learns_of_the_problem(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": "a", "prompt": "What is 6 times 7?", "answer": "forty two"}\n')
    script = tmp_path / "check.sh"
    script.write_text('test "$(cat)" = "$2" && test "$1" = a\n')
    [item] = judged_by_command(load_items(str(file)), f"sh {script} {{id}} {{expected}}", 10.0)
    assert item.verifier.verify("forty two")
    assert not item.verifier.verify("42")
    with pytest.raises(UsageError, match="nowhere"):
        judged_by_command([item], "nowhere-to-be-found", 10.0)


def test_levels_fit_the_budget() -> None:
    item = load_items("game24", limit=1)[0]
    plan = Plan(("game24",), ("beam", "dvts"), (48,), SearchConfig(prompt="x").resolved())
    beam, dvts = (plan.fitted(cell, item) for cell in plan.cells())
    assert beam == {"keep": 4, "width": 16, "oversample": 1.0}
    assert dvts == {"width": 16, "oversample": 1.0}
