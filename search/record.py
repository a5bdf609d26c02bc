"""A search that was recorded and broke off, in the place of what would do its finished steps again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .events import Event, NodeAdded, RunStarted, child_id
from .judge import Judge
from .protocols import Expand, KVStats, Restorer, Step, ValuedGenerator
from .tree import Node, SearchTree
from .watch import Watchable


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a search that broke off."""

    started: RunStarted
    events: list[Event]
    """Those that the undisturbed search would have given too, in order, `started` included."""
    nodes: dict[str, NodeAdded]
    """All finished steps by id, those included that were still waiting for their turn."""
    seconds: float
    """Spent."""
    reason: str
    """Why it broke off, as in `Resumed`."""


class RecordedGenerator:
    """Gives the steps that stand in a record, each at the poll that brought it then, and lets `grower` grow the others.

    So a step that was under way when the record broke off is grown beside those that went before, at the same pace, and
    the search meets at every poll what it met then.
    """

    def __init__(self, grower: Restorer, record: Record) -> None:
        self._grower = grower
        self._valued = grower if isinstance(grower, ValuedGenerator) else None
        self._watched = grower if isinstance(grower, Watchable) else None
        self._nodes = record.nodes
        self._due: list[Expand] = []
        self._polls = 0
        self._policy_tokens = self._scorer_tokens = 0
        self.capacity = grower.capacity
        self.prompt_tokens = grower.prompt_tokens

    @property
    def policy_tokens(self) -> int:
        return self._policy_tokens + self._grower.policy_tokens

    @property
    def scorer_tokens(self) -> int:
        return self._scorer_tokens + self._grower.scorer_tokens

    @property
    def outstanding(self) -> int:
        return len(self._due) + self._grower.outstanding

    def charge(self, tokens: int) -> None:
        """Count tokens that a scorer spent then."""
        self._scorer_tokens += tokens

    def submit(self, expand: Expand) -> None:
        if expand.id in self._nodes:
            self._due.append(expand)
        else:
            self._grower.submit(expand)

    def poll(self) -> list[Step]:
        self._polls += 1
        grown = self._grower.poll() if self._grower.outstanding else []
        ready = [expand for expand in self._due if self._nodes[expand.id].poll <= self._polls]
        self._due = [expand for expand in self._due if expand not in ready]
        steps = [_step(expand, self._nodes[expand.id]) for expand in ready]
        self._policy_tokens += sum(step.tokens for step in steps)
        self._scorer_tokens += sum(step.read_tokens for step in steps)
        return steps + grown

    def keep(self, step: Step) -> None:
        if child_id(step.parent, step.ordinal) in self._nodes:
            self._grower.restore(step)
        else:
            self._grower.keep(step)

    def drop(self, step: Step) -> None:
        if child_id(step.parent, step.ordinal) not in self._nodes:
            self._grower.drop(step)

    def release(self, node_id: str) -> None:
        self._grower.release(node_id)

    def value(self, node_id: str, value: float) -> None:
        if self._valued is not None:
            self._valued.value(node_id, value)

    def growing(self) -> Iterable[tuple[str, str]]:
        return () if self._watched is None else self._watched.growing()

    def take_evicted(self) -> list[str]:
        return [] if self._watched is None else self._watched.take_evicted()

    def cancel(self) -> None:
        self._due.clear()
        self._grower.cancel()

    def kv(self) -> KVStats:
        return self._grower.kv()


class RecordedJudge(Judge):
    """Takes rewards and verdicts from a record, and judges what is not there."""

    def __init__(self, generator: RecordedGenerator, record: Record, *judge: Any, **options: Any) -> None:
        """`judge` and `options` are those of a Judge."""
        super().__init__(*judge, **options)
        self._generator = generator
        self._nodes = {node.id: node for node in record.nodes.values() if node.duplicate_of is None}
        for node in self._nodes.values():
            if node.answer is not None and node.verified is not None:
                self._verdicts[node.answer] = node.verified
        self._warm: set[str] = set()

    def _values(self, judged: Sequence[tuple[Step, Node]], tree: SearchTree) -> Sequence[float | None]:
        known = [self._nodes.get(node.id) for _, node in judged]
        told = [node for node in known if node is not None and not node.late]
        if len(told) == len(known):
            self._generator.charge(sum(node.judge_tokens or 0 for node in told))
            return [node.reward for node in told]
        self._warm_up(judged, tree)
        # A step that was recorded without those judged beside it is judged with them, so that it costs what it did; so
        # is one that was judged beside others because the search was cut short.
        values = super()._values(judged, tree)
        return [value if node is None else node.reward for node, value in zip(known, values, strict=True)]

    def _warm_up(self, judged: Sequence[tuple[Step, Node]], tree: SearchTree) -> None:
        """Let a scorer that reads paths have what it had read by then, at no cost to the budget."""
        warm = getattr(self._scorer, "warm", None)
        if warm is None or not self._nodes:
            return
        parents = {node.parent.id: node.parent for _, node in judged if node.parent is not None}
        cold = [node for name, node in parents.items() if name in self._nodes and name not in self._warm]
        warm(cold, tree)
        self._warm.update(node.id for node in cold)


def _step(expand: Expand, node: NodeAdded) -> Step:
    return Step(
        parent=expand.parent,
        ordinal=expand.ordinal,
        text=node.text,
        tokens=node.tokens,
        logprob=node.logprob,
        finish=node.finish,
        reward=node.reading,
        ids=tuple(node.token_ids),
        intervals=tuple(node.intervals),
        read_tokens=node.read_tokens,
    )
