"""What each scorer makes of a step."""

from __future__ import annotations

import math

import pytest

from frtool.scoring import LogprobScorer, StepRewardScorer, VerdictScorer
from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree


def grow(*steps: tuple[str, int, float, str], reward: float | None = None) -> tuple[SearchTree, list[Node], list[Step]]:
    """A single path of (text, tokens, logprob, finish)."""
    tree, nodes, made = SearchTree(), [], []
    parent = tree.root
    for text, tokens, logprob, finish in steps:
        tree.want(parent)
        step = Step(parent.id, 0, text, tokens, logprob, finish, reward)
        node, _ = tree.make(step)
        node.terminal = None if finish == "step" else finish
        tree.attach(node)
        nodes.append(node)
        made.append(step)
        parent = node
    return tree, nodes, made


class Last:
    """The answer is the last word."""

    def answer(self, text: str) -> str | None:
        return text.split()[-1] if text.split() else None

    def key(self, text: str) -> str:
        return text


class Is24:
    name = "is-24"
    calls = 0

    def verify(self, answer: str) -> bool:
        self.calls += 1
        return answer == "24"


def test_the_step_reward_is_the_generators_reading() -> None:
    tree, nodes, steps = grow(("a\n", 2, -1.0, "step"), reward=0.25)
    assert StepRewardScorer().score(nodes, steps, tree) == [0.25]


def test_a_step_without_a_reading_is_an_error() -> None:
    tree, nodes, steps = grow(("a\n", 2, -1.0, "step"))
    with pytest.raises(ValueError, match=r"0\.0 came without"):
        StepRewardScorer().score(nodes, steps, tree)


def test_logprob_is_the_geometric_mean_probability_of_the_path() -> None:
    tree, nodes, steps = grow(("a\n", 2, 2 * math.log(0.5), "step"), ("b\n", 4, 4 * math.log(0.1), "end"))
    scores = LogprobScorer().score(nodes, steps, tree)
    assert scores == pytest.approx([0.5, (0.5**2 * 0.1**4) ** (1 / 6)])


def test_logprob_stays_in_the_unit_interval() -> None:
    tree, nodes, steps = grow(("", 0, 0.0, "end"))
    assert LogprobScorer().score(nodes, steps, tree) == [1.0]
    tree, nodes, steps = grow(("a", 1, 1e-9, "step"), ("b", 1, -1e5, "end"))
    assert LogprobScorer().score(nodes, steps, tree) == [1.0, 0.0]


@pytest.mark.parametrize(("text", "finish", "score"), [("24", "end", 1.0), ("25", "end", 0.0), ("24", "step", 0.5)])
def test_a_verdict_counts_for_finished_paths(text: str, finish: str, score: float) -> None:
    tree, nodes, steps = grow((text, 1, -1.0, finish))
    assert VerdictScorer(Last(), Is24()).score(nodes, steps, tree) == [score]


def test_a_finished_path_without_an_answer_is_wrong() -> None:
    tree, nodes, steps = grow((" ", 1, -1.0, "length"))
    assert VerdictScorer(Last(), Is24()).score(nodes, steps, tree) == [0.0]


def test_a_path_cut_by_the_depth_limit_is_finished() -> None:
    tree, nodes, steps = grow(("24\n", 1, -1.0, "step"))
    nodes[0].terminal = "length"
    assert VerdictScorer(Last(), Is24()).score(nodes, steps, tree) == [1.0]


def test_paths_that_go_on_get_the_inner_score() -> None:
    tree, nodes, steps = grow(("a ", 1, math.log(0.3), "step"), ("24", 1, -5.0, "end"))
    verifier = Is24()
    scorer = VerdictScorer(Last(), verifier, LogprobScorer())
    assert scorer.score(nodes, steps, tree) == [pytest.approx(0.3), 1.0]
    assert scorer.score(nodes, steps, tree)[1] == 1.0
    assert verifier.calls == 1
    assert scorer.name == "is-24"
