"""Everything that can happen in a search. The live tree, the trace, exports, replay and resume read these and nothing
else observes the search.

Node ids are paths of child ordinals from the root: the root is `"0"`, its third child `"0.2"`. So an id says where a
node stands, does not depend on the order in which steps finish, and keys the sampling noise of its children.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

TRACE_VERSION = 3
"""2: what `resume` needs of a step, such as its tokens, stands in its event. 3: its intervals too, on which the samples
after it depend. Older ones are read all the same."""
ROOT_ID = "0"


def child_id(parent: str, ordinal: int) -> str:
    return f"{parent}.{ordinal}"


def parent_id(node_id: str) -> str | None:
    """The id of the parent, or None for the root."""
    head, _, _ = node_id.rpartition(".")
    return head or None


def id_order(node_id: str) -> tuple[int, ...]:
    """Sort key that puts ids in depth-first order: "0.2" before "0.10"."""
    return tuple(map(int, node_id.split(".")))


@dataclass(frozen=True, slots=True)
class RunStarted:
    """First event. `config` is the resolved configuration: enough to run the same search again."""

    kind: ClassVar[str] = "run"
    prompt: str
    config: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    """name, architecture, parameters, dtype, device, attention backend and why."""
    prompt_tokens: int = 0
    version: int = TRACE_VERSION


@dataclass(frozen=True, slots=True)
class NodeAdded:
    """A finished step became a node, or was recognised as a copy of one (`duplicate_of`)."""

    kind: ClassVar[str] = "node"
    id: str
    text: str
    tokens: int
    logprob: float
    """Sum over the step's tokens, natural log, of the model's own distribution (temperature 1, no truncation)."""
    prior: float
    """exp(logprob / tokens), normalised over the siblings so far; not normalised where siblings are independent."""
    reward: float | None = None
    """The scorer's value of the path that ends here, in [0, 1]; None where no scorer ran."""
    terminal: str | None = None
    """None, or why the path ends: 'end' (the model ended it), 'length' (a limit cut it)."""
    answer: str | None = None
    verified: bool | None = None
    """The verifier's verdict, None where none ran. It only grades unless the configuration says that it steers."""
    duplicate_of: str | None = None
    token_ids: list[int] = field(default_factory=list)
    """Of the text; an end token is not among them."""
    intervals: list[float] = field(default_factory=list)
    """As in `Step`, where the search samples its siblings by them."""
    finish: str = ""
    """As in `Step`."""
    reading: float | None = None
    """The generator's own reading of the step's reward."""
    read_tokens: int = 0
    """Tokens that this reading took."""
    judge_tokens: int | None = field(default=0, compare=False)
    """Tokens that the scorer spent on the new steps that it judged in one call, told with the last of them, and None
    with the others."""
    poll: int = field(default=0, compare=False)
    """Which of the search's polls of its generator brought the step: the pace, which is no part of the tree."""
    late: bool = False
    """It waited for its turn when the search was cut short, and the algorithm was not told of it."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Work was asked for: children of these nodes are being generated."""

    kind: ClassVar[str] = "select"
    ids: list[str]
    """Future ids of the children asked for."""


@dataclass(frozen=True, slots=True)
class Backup:
    """`value` was added to every node from `id` up to the root, each with one more visit."""

    kind: ClassVar[str] = "backup"
    id: str
    value: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """These nodes left the search and their KV was freed."""

    kind: ClassVar[str] = "prune"
    ids: list[str]
    reason: str
    """'beam', 'exhausted', 'budget', 'memory', …"""


@dataclass(frozen=True, slots=True)
class Tick:
    """Counters, a few times a second. Wall-clock values live only here and in `Ended`, so trees can be compared."""

    kind: ClassVar[str] = "tick"
    seconds: float
    policy_tokens: int
    scorer_tokens: int
    nodes: int
    rows: int
    """Rows of the decode batch that are live."""
    capacity: int
    blocks_used: int
    blocks_total: int
    physical_tokens: int
    """Distinct token slots held."""
    logical_tokens: int
    """What the same branches would hold without sharing."""
    forks: int = 0
    frees: int = 0
    tokens_per_second: float = 0.0
    note: str = ""
    growing: dict[str, str] = field(default_factory=dict)
    """By future id, the text that steps under way have gained since the last tick; of the oldest few."""
    evicted: list[str] = field(default_factory=list)
    """Nodes whose KV was given up since the last tick. It is recomputed where they are expanded again."""
    recomputed_tokens: int = 0
    """Read again so far, because their KV had been evicted."""
    restored_tokens: int = 0
    """Copied back so far, from where evicted KV was kept."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run had stopped here and goes on, as if it had not."""

    kind: ClassVar[str] = "resume"
    seconds: float
    """Spent before."""
    nodes: int
    """Steps that were known."""
    reason: str = "killed"
    """Why it had stopped: 'killed', 'interrupted', 'memory' or 'failed: …'."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Last event, always written, whatever ended the search."""

    kind: ClassVar[str] = "end"
    reason: str
    """'solved', 'tokens', 'nodes', 'steps', 'seconds', 'kv', 'exhausted', 'interrupted', 'memory', 'failed: …', or the
    algorithm's own: 'finished', 'converged', 'answers', 'simulations', 'accepted'."""
    best: str | None
    """Id of the selected node."""
    answer: str | None
    reward: float | None = None
    votes: int = 0
    verified: bool | None = None
    seconds: float = 0.0
    policy_tokens: int = 0
    scorer_tokens: int = 0
    prompt_tokens: int = 0
    nodes: int = 0
    terminals: int = 0
    kv_peak_blocks: int = 0
    kv_peak_bytes: int = 0
    kv_unshared_peak_bytes: int = 0
    """What the branches of the most crowded moment would have held without sharing."""
    recomputed_tokens: int = 0
    """Tokens that were read again, because their KV had been evicted."""
    restored_tokens: int = 0
    """Tokens whose evicted KV was copied back instead."""


Event = RunStarted | NodeAdded | Selected | Backup | Pruned | Tick | Resumed | Ended
_KINDS: dict[str, type[Any]] = {
    c.kind: c for c in (RunStarted, NodeAdded, Selected, Backup, Pruned, Tick, Resumed, Ended)
}


def to_record(event: Event) -> dict[str, Any]:
    """The JSON object of an event: its fields, with `kind` first."""
    return {"kind": event.kind, **asdict(event)}


def from_record(record: dict[str, Any]) -> Event:
    """The event of a JSON object. Unknown fields are ignored (a newer minor writer).

    Raises ValueError for a missing or unknown kind or a missing field.
    """
    kind = record.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown event kind {kind!r}")
    names = {f.name for f in fields(cls)}
    try:
        event: Event = cls(**{k: v for k, v in record.items() if k in names})
    except TypeError as error:
        raise ValueError(f"event {kind!r}: {error}") from None
    return event
