"""The tree of a search: nodes, their statistics, and which of them are the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from .events import ROOT_ID, Backup, Event, child_id
from .lines import Lines
from .protocols import Expand, Step

COVERED = 0.99
"""Probability that a node's children must hold together to be taken for all that the model would write, where nobody
knows the lines that it wrote."""


class Node:
    """One step of reasoning and the path that it ends.

    Fields that the model sets: `text`, `tokens`, `logprob` (sum, natural log), `finish`; `path_tokens` and
    `path_logprob` add up the path. Fields that the search sets: `reward` (the scorer's, in [0, 1]), `terminal`,
    `answer`, `verified`. Statistics: `visits`, `total` (sum of the values backed up), `peak` (largest of them),
    `virtual` (simulations under way below), `copies` (samples that gave this very step, itself included).
    """

    __slots__ = (
        "answer",
        "asked",
        "children",
        "copies",
        "depth",
        "duplicates",
        "finish",
        "id",
        "keys",
        "lines",
        "live",
        "logprob",
        "mass",
        "ordinal",
        "parent",
        "path_logprob",
        "path_tokens",
        "peak",
        "pending",
        "reward",
        "state",
        "terminal",
        "text",
        "tokens",
        "total",
        "verified",
        "virtual",
        "visits",
        "weight",
        "weights",
        "why",
    )

    def __init__(
        self, id: str, parent: Node | None, ordinal: int, text: str, tokens: int, logprob: float, finish: str
    ) -> None:
        self.id = id
        self.parent: Node | None = parent
        self.ordinal = ordinal
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.text = text
        self.tokens = tokens
        self.logprob = logprob
        self.finish = finish
        self.path_tokens: int = tokens if parent is None else parent.path_tokens + tokens
        self.path_logprob: float = logprob if parent is None else parent.path_logprob + logprob
        self.weight = math.exp(logprob / tokens) if tokens else 1.0
        """exp of the mean log-probability a token: the step's share of the prior before normalisation."""

        self.reward: float | None = None
        self.terminal: str | None = None
        """None, 'end' or 'length'."""
        self.answer: str | None = None
        self.verified: bool | None = None

        self.state = "open"
        """'open', 'terminal', 'expanded' (no more children, the path goes on), 'closed' (nothing left below),
        'pruned' (left the search)."""
        self.why = ""
        """The reason of a 'closed' or 'pruned' state."""
        self.children: list[Node] = []
        self.live: list[Node] = []
        """Children that are neither closed nor pruned nor terminal."""
        self.keys: dict[Hashable, Node] = {}
        """Children by equality key, those not yet attached included."""
        self.lines: Lines | None = None
        """What was sampled here, where repeats are to be avoided."""
        self.asked = 0
        """Ordinals used so far."""
        self.pending = 0
        """Children under way."""
        self.duplicates = 0
        """Samples in a row that gave nothing new."""
        self.weights = 0.0
        """Sum of the children's weights."""
        self.mass = 0.0
        """Probability that the model gives to the children together."""

        self.visits = 0
        self.total = 0.0
        self.peak = -math.inf
        self.virtual = 0
        self.copies = 1

    @property
    def prior(self) -> float:
        """exp(logprob / tokens), normalised over the siblings that are attached."""
        if self.parent is None or not self.parent.weights:
            return 1.0
        return self.weight / self.parent.weights

    @property
    def mean(self) -> float | None:
        """Mean of the values backed up, None before the first."""
        return self.total / self.visits if self.visits else None

    @property
    def covered(self) -> bool:
        """Whether sampling more children is not worth it, because what was seen holds nearly all probability."""
        if self.lines is not None and self.lines.seen:
            return self.lines.covered
        return self.mass >= COVERED

    def path(self) -> list[Node]:
        """From the root to this node, both included."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    @property
    def path_text(self) -> str:
        """All steps of the path joined; the prompt is not part of it."""
        return "".join(node.text for node in self.path())

    def __repr__(self) -> str:
        return f"Node({self.id!r}, {self.text!r}, reward={self.reward}, visits={self.visits}, {self.state})"


class SearchTree:
    """All nodes of one search, by id. `journal` collects the events that algorithms cause; the run takes them."""

    def __init__(self) -> None:
        self.root = Node(ROOT_ID, None, 0, "", 0, 0.0, "step")
        self.nodes: dict[str, Node] = {ROOT_ID: self.root}
        self.terminals: list[Node] = []
        self.states: dict[str, Node] = {}
        """The first node of each state that the task can name."""
        self.journal: list[Event] = []
        self.blind = False
        """Whether the generator does not tell where the tokens lie that it was asked for."""

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def __contains__(self, node_id: str) -> bool:
        return node_id in self.nodes

    def __len__(self) -> int:
        """Nodes without the root."""
        return len(self.nodes) - 1

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def want(self, node: Node, *, greedy: bool = False, lines: Lines | None = None) -> Expand:
        """The request for the next child of `node`, sampled or the likeliest; it takes the next ordinal. With `lines`
        it is to be none of them; the node holds them from then on."""
        if node.state != "open":
            raise ValueError(f"node {node.id} is {node.state} and cannot be expanded")
        if lines is None:
            expand = Expand(node.id, node.asked, greedy)
        else:
            node.lines = lines
            expand = Expand(node.id, node.asked, greedy, *lines.draw(node.asked))
        node.asked += 1
        node.pending += 1
        return expand

    def make(self, step: Step, key: Hashable | None = None, state: str | None = None) -> tuple[Node, bool]:
        """The node of a finished step, not yet attached, and whether it is new.

        `key` is the step's equality key among its siblings, `state` that of its path in the whole tree; with either
        known already, the node that had it first is returned. None means that the step equals no other.
        """
        parent = self.nodes[step.parent]
        if key is not None and key in parent.keys:
            return parent.keys[key], False
        if state is not None and state in self.states:
            return self.states[state], False
        name = child_id(step.parent, step.ordinal)
        node = Node(name, parent, step.ordinal, step.text, step.tokens, step.logprob, step.finish)
        if key is not None:
            parent.keys[key] = node
        if state is not None:
            self.states[state] = node
        return node, True

    def attach(self, node: Node) -> None:
        """Make a node from `make`, with its reward and terminal set, part of the tree."""
        parent = node.parent
        assert parent is not None, "the root is attached from the start"
        parent.pending -= 1
        parent.duplicates = 0
        parent.children.append(node)
        parent.weights += node.weight
        parent.mass += math.exp(node.logprob)
        self.nodes[node.id] = node
        if node.terminal is None:
            parent.live.append(node)
        else:
            node.state = "terminal"
            self.terminals.append(node)

    def repeat(self, expand: Expand, node: Node, *, novel: bool = False) -> None:
        """Record that the step asked for by `expand` is a copy of `node`, written in `novel` words or in the same."""
        parent = self.nodes[expand.parent]
        parent.pending -= 1
        if not novel:
            parent.duplicates += 1
        node.copies += 1

    def learn(self, step: Step) -> bool:
        """Take in the line of a finished step where its parent remembers them; whether it is known to be new."""
        lines = self.nodes[step.parent].lines
        if lines is None:
            return False
        if lines.has_drawn(step.ordinal):
            self.blind = not step.intervals
        return lines.add(step)

    def backup(self, node: Node, value: float) -> None:
        """Add `value` and one visit to every node from `node` to the root."""
        at: Node | None = node
        while at is not None:
            at.visits += 1
            at.total += value
            if value > at.peak:
                at.peak = value
            at = at.parent
        self.journal.append(Backup(node.id, value))

    def leave(self, node: Node, state: str, why: str = "") -> Node:
        """Set the state of a node that will not be expanded any more; returns it, for the run to release."""
        if node.parent is not None and state != "expanded" and node.state in ("open", "expanded"):
            node.parent.live.remove(node)
        node.state = state
        node.why = why
        return node
