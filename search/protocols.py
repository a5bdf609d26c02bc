"""What the search asks of the world, and what the world may ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .events import child_id

if TYPE_CHECKING:
    from .tree import Node, SearchTree


@dataclass(frozen=True, slots=True)
class Expand:
    """One step to generate: child number `ordinal` of node `parent`. The pair names it and keys the sampling noise."""

    parent: str
    ordinal: int
    greedy: bool = field(default=False, compare=False, repr=False)
    """Take the likeliest token each time, whatever the temperature."""
    prefix: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """Tokens that the step begins with, as a step did that the parent has already."""
    uniform: float | None = field(default=None, compare=False, repr=False)
    """In (0, 1): the place in the order of `Step.intervals` of the token after the prefix. None leaves it to chance, as
    all tokens that follow are. A generator that gives no intervals need not look at either."""

    @property
    def id(self) -> str:
        """Id of the node that the step will be, unless it is a duplicate."""
        return child_id(self.parent, self.ordinal)


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step. Its KV is held by the generator until `keep` or `drop`."""

    parent: str
    ordinal: int
    text: str
    tokens: int
    logprob: float
    finish: str
    """'step' (delimiter), 'end' (end token), 'length' (step, path or context limit)."""
    reward: float | None = None
    """The generator's own reading of the process-reward token, where the model has one."""
    ids: tuple[int, ...] = ()
    """Tokens of the text; an end token is not among them."""
    read_tokens: int = 0
    """Tokens that the reading took."""
    intervals: tuple[float, ...] = ()
    """Of a step that was asked for with a `uniform`: for each of `tokens`, the end token included, the lower and the
    upper edge of the numbers that draw it after those before it, one pair after the other, in [0, 1]; (0, 0) for those
    of the prefix. Empty for other steps, and where the generator does not know them."""


class OutOfMemory(RuntimeError):
    """The generator cannot hold another step, whatever it evicts. The search ends with the best answer so far."""


@dataclass(frozen=True, slots=True)
class KVStats:
    """Counters of the KV pool, in blocks, tokens and bytes."""

    blocks_used: int
    blocks_total: int
    physical_tokens: int
    logical_tokens: int
    peak_blocks: int
    peak_bytes: int
    unshared_peak_bytes: int
    forks: int
    frees: int
    bytes_used: int = 0
    """Of this tree alone, where several share the pool."""
    recomputed_tokens: int = 0
    """Tokens of this tree that were read again, because their KV had been evicted."""
    restored_tokens: int = 0
    """Tokens of this tree whose evicted KV was copied back instead."""


class Generator(Protocol):
    """Grows branches of one model. The engine is one; a fake of a few lines is another."""

    capacity: int
    """Steps that may be outstanding at once."""
    prompt_tokens: int
    policy_tokens: int
    """Sampled so far."""
    scorer_tokens: int
    """Spent on reading rewards so far."""

    def submit(self, expand: Expand) -> None:
        """Queue one step. The parent must be the root or a kept node that was not released."""

    def poll(self) -> list[Step]:
        """Advance every outstanding step, by one token or more; return those that finished. Empty when idle or when
        none has finished yet; `outstanding` tells which."""

    @property
    def outstanding(self) -> int: ...

    def keep(self, step: Step) -> None:
        """Adopt the step's KV as that of node `parent.ordinal`."""

    def drop(self, step: Step) -> None:
        """Free the step's KV (a duplicate, or past the budget)."""

    def release(self, node_id: str) -> None:
        """Free a kept node's KV. Blocks that its descendants share live on."""

    def cancel(self) -> None:
        """Abandon everything outstanding and free it."""

    def kv(self) -> KVStats: ...


class Restorer(Generator, Protocol):
    """A generator that can hold nodes which it did not grow itself."""

    def restore(self, step: Step) -> None:
        """Hold the node `step.parent.ordinal`, whose parent is held, as `keep` would have. Its path is read no sooner
        than something is to grow there."""


@runtime_checkable
class ValuedGenerator(Generator, Protocol):
    """A generator that keeps the KV of what is worth most when its memory runs out."""

    def value(self, node_id: str, value: float) -> None:
        """What the scorer thinks of a kept node, in [0, 1]."""


class Forest(Protocol):
    """Several generators that grow in one batch: a poll of it advances them all, and their own polls only fetch."""

    @property
    def roomy(self) -> bool:
        """Whether one more generator would find something to do at once."""

    def poll(self) -> None: ...


class Scorer(Protocol):
    """Judges finished steps."""

    name: str

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        """A value in [0, 1] for the path that ends in each node; `steps[i]` made `nodes[i]`.

        The nodes are kept, so the generator holds the KV of their paths; they are not yet attached to the tree.
        """


@runtime_checkable
class SharingScorer(Scorer, Protocol):
    """A scorer that can compute for several searches at once."""

    def ask(self, nodes: Sequence[Node], tree: SearchTree) -> None:
        """Say what the next `score` will be called for. What computes for all has its chance in between."""


class Task(Protocol):
    """What a prompt is about: where its answer stands, and which paths are the same."""

    def answer(self, text: str) -> str | None:
        """The final answer of a finished path's text (all steps joined), or None."""

    def key(self, text: str) -> str:
        """Equality key of one step's text: siblings with equal keys are one child."""


@runtime_checkable
class StateTask(Task, Protocol):
    """A task that knows when two different paths have come to the same place."""

    def state(self, text: str) -> str | None:
        """Name of the state that an unfinished path (all steps joined) has reached, or None.

        Paths with equal states are searched once, from the path that came first. So it must be None where the rest of
        the path does not depend on the state alone, such as after a line that broke the rules.
        """


class Verifier(Protocol):
    """Says whether an answer is right, by a rule outside the model."""

    name: str

    def verify(self, answer: str) -> bool: ...


class Algorithm(Protocol):
    """Ask/tell. Deterministic given what it is told; holds no model, no clock, no random state of its own."""

    @property
    def name(self) -> str: ...

    @property
    def greedy(self) -> bool:
        """Whether steps are to be taken at temperature 0."""

    @property
    def merges(self) -> bool:
        """Whether a step with the key of a sibling, or with the state of any node, is a duplicate of that node."""

    @property
    def ordered(self) -> bool:
        """Whether results are told in the order in which they were asked for, whatever the order they finish in.

        Then the tree depends neither on the generator's capacity nor on its pace; a step may have to wait for an
        earlier one. An algorithm whose chains do not look at each other needs no order.
        """

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        """Up to `room` steps wanted now, each from `tree.want`. Empty while it waits for outstanding ones, when `done`,
        and when there is nothing left to search."""

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        """The step asked for by `expand` came back as `node`; for a duplicate that is the node it equals.

        Returns the nodes that will not be expanded any more, each from `tree.leave`, for the run to release. None of
        them may have children under way.
        """

    def done(self, tree: SearchTree) -> str | None:
        """Why the search ends here, in one word ('finished', 'converged', …); None while it goes on."""

    def best(self, tree: SearchTree) -> Node | None:
        """The node whose path is the answer so far."""
