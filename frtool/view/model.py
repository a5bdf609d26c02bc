"""A search as its events tell it: the mirror that every view, report and export draws from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from frtool.search.events import (
    ROOT_ID,
    Backup,
    Ended,
    Event,
    NodeAdded,
    Pruned,
    Resumed,
    RunStarted,
    Selected,
    Tick,
    parent_id,
)

HISTORY = 64
_SPEED_SECONDS = 3.0


@dataclass(slots=True, eq=False)
class ViewNode:
    """One node as seen so far. `backed` are the values that were backed up from this very node."""

    id: str
    parent: ViewNode | None
    ordinal: int
    depth: int
    text: str = ""
    tokens: int = 0
    logprob: float = 0.0
    prior: float = 0.0
    reward: float | None = None
    terminal: str | None = None
    answer: str | None = None
    verified: bool | None = None
    duplicate_of: str | None = None
    pruned: str | None = None
    """Why it left the search, or None."""
    visits: int = 0
    value_sum: float = 0.0
    backed: list[float] = field(default_factory=list)
    children: dict[int, ViewNode] = field(default_factory=dict)
    """By ordinal, duplicates left out."""
    duplicates: list[ViewNode] = field(default_factory=list)
    """Children that turned out to be copies."""
    copies: int = 0
    """How often a sibling turned out to be a copy of this node."""
    pending: int = 0
    """Children that are being generated."""
    evicted: bool = False
    """Whether its KV was given up; it comes back with the next child."""
    below: int = 0
    """Nodes under this one, duplicates left out."""

    @property
    def closed(self) -> bool:
        """Whether everything below was searched; that is no verdict on the node."""
        return self.pruned == "exhausted"

    @property
    def dropped(self) -> bool:
        """Whether the search gave it up."""
        return self.pruned is not None and not self.closed

    @property
    def value(self) -> float | None:
        """The mean of the values backed up through this node, else the scorer's reward, else None."""
        return self.value_sum / self.visits if self.visits else self.reward

    def path(self) -> list[ViewNode]:
        """From the root to this node."""
        nodes: list[ViewNode] = []
        node: ViewNode | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class TreeModel:
    """Apply events in order; read the state at any time. Tolerates events about nodes that it has not seen."""

    def __init__(self) -> None:
        self.run: RunStarted | None = None
        self.root = ViewNode(ROOT_ID, None, 0, 0)
        self.nodes: dict[str, ViewNode] = {ROOT_ID: self.root}
        self.pending: set[str] = set()
        self.growing: dict[str, str] = {}
        """Text so far of the steps under way, as far as it was told, the oldest first."""
        self.tick: Tick | None = None
        self.ended: Ended | None = None
        self.resumed = False
        """Whether the run had stopped and went on."""
        self.terminals = 0
        self.steps = 0
        """Steps that came back, copies of nodes counted."""
        self.reused = 0
        """Prompt and path tokens that steps found in the cache, counted once a step."""
        self.blocks: deque[int] = deque(maxlen=HISTORY)
        self._ticks: deque[Tick] = deque()
        self._leader: ViewNode | None = None

    def apply(self, event: Event) -> None:
        match event:
            case NodeAdded():
                self.steps += 1
                self._add(event)
            case Backup():
                self._backup(event)
            case Selected():
                for node_id in event.ids:
                    self._ask(node_id)
            case Pruned():
                for node_id in event.ids:
                    self._node(node_id).pruned = event.reason
            case Tick():
                self.tick = event
                self._grow(event)
                self.blocks.append(event.blocks_used)
                self._ticks.append(event)
                while event.seconds - self._ticks[0].seconds > _SPEED_SECONDS and len(self._ticks) > 2:
                    self._ticks.popleft()
            case Resumed():
                self.resumed = True
                self.growing.clear()  # what is under way is told again from its beginning
            case RunStarted():
                self.run = event
                self.root.text = event.prompt
                self.root.tokens = event.prompt_tokens
            case Ended():
                self.ended = event
                for node_id in list(self.pending):
                    self._answered(node_id)

    @property
    def config(self) -> dict[str, Any]:
        return self.run.config if self.run else {}

    @property
    def seconds(self) -> float:
        return self.ended.seconds if self.ended else self.tick.seconds if self.tick else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over the last few seconds: a single tick sees a burst or a pause."""
        if self.tick is None:
            return 0.0
        first = self._ticks[0]
        seconds = self.tick.seconds - first.seconds
        return (self.tick.policy_tokens - first.policy_tokens) / seconds if seconds > 0 else self.tick.tokens_per_second

    def best(self) -> ViewNode:
        """The node that the search selected; before its end, the best finished path, else the most promising line."""
        if self.ended is not None and self.ended.best in self.nodes:
            return self.nodes[self.ended.best]
        if self._leader is not None:
            return self._leader
        node = self.root
        while node.children:
            live = [c for c in node.children.values() if not c.dropped] or list(node.children.values())
            node = max(live, key=lambda c: (_number(c.value), c.prior))
        return node

    def walk(self) -> Iterator[ViewNode]:
        """Every node but the duplicates, depth first, children by ordinal."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children[k] for k in sorted(node.children, reverse=True))

    def _node(self, node_id: str) -> ViewNode:
        """The node of that id; it and its ancestors are made where no event told of them."""
        node = self.nodes.get(node_id)
        if node is None:
            chain = []
            current: str | None = node_id
            while current is not None and current not in self.nodes:
                chain.append(current)
                current = parent_id(current)
            node = self.nodes[current] if current is not None else self.root
            for missing in reversed(chain):
                ordinal = int(missing.rpartition(".")[2])
                child = ViewNode(missing, node, ordinal, node.depth + 1)
                self.nodes[missing] = node.children[ordinal] = child
                above: ViewNode | None = node
                while above is not None:
                    above.below += 1
                    above = above.parent
                node = child
        return node

    def _ask(self, node_id: str) -> None:
        above = parent_id(node_id)
        if node_id not in self.pending and above is not None:
            self.pending.add(node_id)
            parent = self._node(above)
            parent.pending += 1
            parent.evicted = False

    def _answered(self, node_id: str) -> None:
        above = parent_id(node_id)
        if node_id in self.pending and above is not None:
            self.pending.discard(node_id)
            self.growing.pop(node_id, None)
            self._node(above).pending -= 1

    def _grow(self, tick: Tick) -> None:
        for node_id, text in tick.growing.items():
            if node_id in self.pending:
                self.growing[node_id] = self.growing.get(node_id, "") + text
        for node_id in tick.evicted:
            if node_id in self.nodes:
                self.nodes[node_id].evicted = True

    def _add(self, event: NodeAdded) -> None:
        self._answered(event.id)
        self.reused += sum(above.tokens for above in self._node(parent_id(event.id) or ROOT_ID).path())
        if event.duplicate_of is not None and event.id not in self.nodes:
            parent = self._node(parent_id(event.id) or ROOT_ID)
            node = ViewNode(event.id, parent, int(event.id.rpartition(".")[2]), parent.depth + 1)
            parent.duplicates.append(node)
            self._node(event.duplicate_of).copies += 1
        else:
            node = self._node(event.id)
        node.text, node.tokens, node.logprob, node.prior = event.text, event.tokens, event.logprob, event.prior
        node.reward, node.terminal, node.answer = event.reward, event.terminal, event.answer
        node.verified, node.duplicate_of = event.verified, event.duplicate_of
        if event.terminal is not None and event.duplicate_of is None:
            self.terminals += 1
            if self._leader is None or self._rank(node) > self._rank(self._leader):
                self._leader = node

    def _rank(self, node: ViewNode) -> tuple[bool, bool, float, float]:
        """Finished paths in the order in which a search would choose them: a verdict counts only where it steers."""
        per_token = node.logprob / node.tokens if node.tokens else 0.0
        return (
            bool(self.config.get("steer")) and node.verified is True,
            node.answer is not None,
            _number(node.reward),
            per_token,
        )

    def _backup(self, event: Backup) -> None:
        node: ViewNode | None = self._node(event.id)
        assert node is not None
        node.backed.append(event.value)
        while node is not None:
            node.visits += 1
            node.value_sum += event.value
            node = node.parent


def _number(value: float | None) -> float:
    return -math.inf if value is None or value != value else value
