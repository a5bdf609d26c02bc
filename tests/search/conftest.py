"""A model of a few lines: a tree of texts that hashing fixes, with the KV bookkeeping checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from frtool.search.budget import Budget
from frtool.search.events import ROOT_ID, Event, NodeAdded, child_id
from frtool.search.protocols import Expand, KVStats, Step
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search


def unit(*parts: Any) -> float:
    """A number in [0, 1) that only depends on the parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass
class FakeModel:
    """Each path of letters goes on with one of `branching` letters, by fixed odds, and ends at `depth` letters."""

    branching: int = 3
    depth: int = 3
    capacity: int = 4
    seed: int = 0
    slowest: int = 3
    """Polls that the slowest step takes."""
    early: float = 0.0
    """Share of paths that end before `depth`."""

    prompt_tokens: int = 7
    policy_tokens: int = 0
    scorer_tokens: int = 0
    under_way: dict[Expand, int] = field(default_factory=dict)
    finished: set[Expand] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=lambda: {ROOT_ID: ""})
    texts: dict[str, str] = field(default_factory=lambda: {ROOT_ID: ""})
    forks: int = 0
    frees: int = 0

    def odds(self, path: str) -> list[float]:
        weights = [0.05 + unit(self.seed, "odds", path, letter) for letter in range(self.branching)]
        return [weight / sum(weights) for weight in weights]

    def ends(self, path: str) -> bool:
        return len(path) >= self.depth or (len(path) > 0 and unit(self.seed, "ends", path) < self.early)

    def reward(self, path: str) -> float:
        return unit(self.seed, "reward", path)

    def paths(self, path: str = "") -> list[str]:
        """Every finished path."""
        if path and self.ends(path):
            return [path]
        return [end for letter in range(self.branching) for end in self.paths(path + chr(97 + letter))]

    def submit(self, expand: Expand) -> None:
        assert expand.parent in self.held, f"{expand.parent} is not held"
        assert expand not in self.under_way, "asked for twice"
        assert len(self.under_way) < self.capacity, "over capacity"
        self.forks += 1
        self.under_way[expand] = 1 + int(unit(self.seed, "pace", expand) * self.slowest)

    def poll(self) -> list[Step]:
        steps = []
        for expand in list(self.under_way):
            self.under_way[expand] -= 1
            if not self.under_way[expand]:
                del self.under_way[expand]
                self.finished.add(expand)
                steps.append(self.step(expand))
                self.policy_tokens += steps[-1].tokens
        return steps

    def step(self, expand: Expand) -> Step:
        path = self.texts[expand.parent]
        odds = self.odds(path)
        draw, letter = unit(self.seed, "draw", expand), 0
        while draw > odds[letter] and letter < self.branching - 1:
            draw -= odds[letter]
            letter += 1
        text = chr(97 + letter)
        finish = "end" if self.ends(path + text) else "step"
        tokens = 1 + int(unit(self.seed, "tokens", expand) * 4)
        return Step(
            expand.parent, expand.ordinal, text, tokens, math.log(odds[letter]), finish, self.reward(path + text)
        )

    @property
    def outstanding(self) -> int:
        return len(self.under_way)

    def keep(self, step: Step) -> None:
        self.finished.remove(Expand(step.parent, step.ordinal))
        name = child_id(step.parent, step.ordinal)
        self.held[name] = self.texts[name] = self.texts[step.parent] + step.text

    def drop(self, step: Step) -> None:
        self.finished.remove(Expand(step.parent, step.ordinal))
        self.frees += 1

    def release(self, node_id: str) -> None:
        assert node_id != ROOT_ID, "the root belongs to the generator"
        del self.held[node_id]
        self.frees += 1

    def cancel(self) -> None:
        self.frees += len(self.under_way)
        self.under_way.clear()

    def kv(self) -> KVStats:
        held = len(self.held)
        return KVStats(held, 999, held, 2 * held, held, held, 2 * held, self.forks, self.frees)

    def at_rest(self) -> bool:
        """Whether nothing but the root is held."""
        return not self.under_way and not self.finished and set(self.held) == {ROOT_ID}


@dataclass
class PlacedModel(FakeModel):
    """A FakeModel that tells where its tokens lie, and follows a request that names a place. A letter has two tokens:
    its group, of two letters, and itself."""

    requests: dict[Expand, Expand] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    """Every path, as it was drawn."""

    def submit(self, expand: Expand) -> None:
        super().submit(expand)
        self.requests[expand] = expand

    def step(self, expand: Expand) -> Step:
        request, path = self.requests[expand], self.texts[expand.parent]
        odds = self.odds(path)
        groups = [sum(odds[place : place + 2]) for place in range(0, len(odds), 2)]
        group, first = self.token(request, 0, groups)
        letter, second = self.token(request, 1, [share / groups[group] for share in odds[2 * group : 2 * group + 2]])
        text = chr(97 + 2 * group + letter)
        self.drawn.append(path + text)
        return Step(
            expand.parent,
            expand.ordinal,
            text,
            2,
            math.log(odds[2 * group + letter]),
            "end" if self.ends(path + text) else "step",
            self.reward(path + text),
            ids=(group, letter),
            intervals=(*first, *second),
        )

    def restore(self, step: Step) -> None:
        name = child_id(step.parent, step.ordinal)
        self.held[name] = self.texts[name] = self.texts[step.parent] + step.text

    def token(self, request: Expand, place: int, odds: list[float]) -> tuple[int, tuple[float, float]]:
        """A token and its edges, (0, 0) where it was asked for by name."""
        if place < len(request.prefix):
            return request.prefix[place], (0.0, 0.0)
        named = request.uniform if place == len(request.prefix) else None
        number = unit(self.seed, "draw", request, place) if named is None else named
        low = 0.0
        for token, share in enumerate(odds):
            if number < low + share or token == len(odds) - 1:
                return token, (round(low, 7), round(min(low + share, 1.0), 7))
            low += share
        raise AssertionError


@dataclass
class ScriptedModel(FakeModel):
    """Paths go on as written: child `i` of a path is letter `i` of its line, again from the start when they run out.

    A path without a line is finished. `share` is the probability that the written letters have together.
    """

    draws: dict[str, str] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    share: float = 0.5
    slowest: int = 1

    def reward(self, path: str) -> float:
        return self.rewards.get(path, 0.5)

    def step(self, expand: Expand) -> Step:
        path = self.texts[expand.parent]
        line = self.draws[path]
        text = line[expand.ordinal % len(line)]
        finish = "step" if path + text in self.draws else "end"
        logprob = math.log(self.share * line.count(text) / len(line))
        return Step(expand.parent, expand.ordinal, text, 1, logprob, finish, self.reward(path + text))


class LetterTask:
    """The answer is the whole path; steps are equal when their letters are."""

    def answer(self, text: str) -> str | None:
        return text or None

    def key(self, text: str) -> str:
        return text


@dataclass
class Search:
    """A finished search: what it yielded and what it left behind."""

    events: list[Event]
    model: FakeModel
    algorithm: Any

    @property
    def end(self) -> Any:
        return self.events[-1]

    def nodes(self) -> list[NodeAdded]:
        return [event for event in self.events if isinstance(event, NodeAdded)]

    def added(self) -> dict[str, NodeAdded]:
        return {node.id: node for node in self.nodes() if node.duplicate_of is None}

    def text(self, node_id: str) -> str:
        return self.model.texts[node_id]


@pytest.fixture
def fake_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def scripted_model() -> type[ScriptedModel]:
    return ScriptedModel


@pytest.fixture(scope="session")
def placed_model() -> type[PlacedModel]:
    return PlacedModel


@pytest.fixture
def letter_task() -> LetterTask:
    return LetterTask()


@pytest.fixture
def search(letter_task: LetterTask) -> Callable[..., Search]:
    """Runs a search over a FakeModel to its end and checks that it left nothing held."""

    def run(
        name: str | Any, model: FakeModel | None = None, *, options: dict[str, Any] | None = None, **settings: Any
    ) -> Search:
        model = model or FakeModel()
        algorithm = make_algorithm(name, options) if isinstance(name, str) else name
        arguments = {"scorer": None, "task": letter_task, "budget": Budget(steps=2000), "clock": lambda: 0.0} | settings
        events = list(run_search(algorithm=algorithm, generator=model, **arguments))
        assert model.at_rest(), "KV was left behind"
        return Search(events, model, algorithm)

    return run


@pytest.fixture(scope="session")
def fake_model_class() -> type[FakeModel]:
    """The class again, for tests of hypothesis, which refuses fixtures of one function's life."""
    return FakeModel


@pytest.fixture(scope="session")
def letters() -> LetterTask:
    return LetterTask()
