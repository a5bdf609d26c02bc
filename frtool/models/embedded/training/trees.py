"""Training documents: a puzzle with a tree of steps below it, in depth-first order.

A token sees its own path only: token k is visible to token q exactly when k <= q < end[k], where end[k] is one past
the last token below k. Siblings share everything above them, so one document labels many steps for the price of few
tokens. What each position has to predict is stored with it as a distribution:

* Inside a line, up to `=`, the next character's share of the policy's target over all moves that agree with what
  stands so far: every winning move counts, not just the one that was drawn. Where no winning move agrees (in a lost
  state, or behind the first characters of a losing move), only that the line be legal: any character that a legal move
  goes on with is as good as another. Behind `=` everything follows, in dead lines too.
* At `<prm>`, behind a line's end: `<+>` if the target can still be made from what remains, else `<->`. Lines with a
  planted error are `<->`, and nothing of them is imitated.
* Behind the `)` of the last line, where one number remains: `<eos>`. There the reward is read directly behind `)`;
  behind `<eos>` and behind a newline it is trained as well, on a share of the documents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import jit
from .moves import MAX_COUNT, MAX_LINE, Moves, list_moves, new_moves, write_line, write_number, write_state
from .roots import MIN_NUMBERS, draw_puzzle
from .solve import pair_value
from .vocabulary import BAD, BOS, EOS, EQUALS, GOOD, NEWLINE, PRM

WIDTH = 32
"""Columns of a target distribution: the vocabulary, rounded up."""
FULL = 255
"""Whole weight, and whole probability."""
LEGAL_WEIGHT = 128
"""Of 255: the loss of a position that only has to go on legally. Without any, the model learns to win by false lines.
Weights below FULL mark such positions."""
MAX_DOCUMENT = 900
"""Tokens past which a tree grows no further."""
MAX_DOCUMENT_SIZE = 3_500
"""More than any document can have: past MAX_DOCUMENT only the lines already drawn are written."""

WINNERS = (0, 0, 1, 1, 2, 3, 3)
LOSERS = (0, 0, 1, 1, 2, 3, 3)
"""Most lines shown per state, by how many numbers the state has: with few left the reward is easy."""
SHOW_LOSERS = (0.0, 0.0, 0.4, 0.8, 1.0, 1.0, 1.0)
"""Chance that a winnable state shows losing lines."""
WIDE_SHARES = (0.0, 0.1, 0.45, 0.45)
"""Documents for the reward, by how many numbers the puzzle has, 3 to 6: more lines a state, none below four left."""
WIDE = (0, 0, 0, 0, 4, 5, 4)
"""Winning and losing lines that they show."""
EXTRA_BRANCH = (0.0, 0.0, 0.0, 0.3, 0.5, 0.3, 0.25)
"""Chance that a second winning line is followed too."""
FOLLOW_ON = 0.5
"""Chance that a line of a lost state is followed."""
FOLLOW_LOSER = (0.0, 0.0, 0.0, 0.3, 0.25, 0.2, 0.2)
ERROR = (0.0, 0.0, 0.2, 0.1, 0.12, 0.1, 0.1)
"""Chance of a line with a planted error."""


class Documents(NamedTuple):
    """One sequence of documents.

    `tokens` [N] uint8, `positions` [N] int16 (depth in the own path), `ends` [N] int32, `targets` [N, WIDTH] uint8 (a
    distribution, sum 255 up to rounding; under a weight below FULL its entries above 0 are a set, of what is allowed),
    `weights` [N] uint8 (255 = 1), `tags` [N] uint8: 0, or at `<prm>` 1 + 16*(numbers of the puzzle - 3) + 2*lines so
    far + (1 for a planted error).
    """

    tokens: NDArray[Any]
    positions: NDArray[Any]
    ends: NDArray[Any]
    targets: NDArray[Any]
    weights: NDArray[Any]
    tags: NDArray[Any]


def new_documents(size: int) -> Documents:
    return Documents(
        np.zeros(size, np.uint8),
        np.zeros(size, np.int16),
        np.zeros(size, np.int32),
        np.zeros((size, WIDTH), np.uint8),
        np.zeros(size, np.uint8),
        np.zeros(size, np.uint8),
    )


@jit
def put(documents: Documents, at: int, token: int, position: int) -> int:
    """Write one token that nothing has to follow yet; the index behind it."""
    documents.tokens[at] = token
    documents.positions[at] = position
    documents.ends[at] = at + 1
    documents.targets[at, :] = 0
    documents.weights[at] = 0
    documents.tags[at] = 0
    return at + 1


@jit
def aim(documents: Documents, at: int, token: int) -> None:
    """The token at `at` must be followed by `token`."""
    documents.targets[at, :] = 0
    documents.targets[at, token] = FULL
    documents.weights[at] = FULL


@jit
def aim_at_moves(
    documents: Documents,
    at: int,
    moves: Moves,
    n: int,
    line: NDArray[Any],
    prefix: int,
    mass: NDArray[Any],
) -> None:
    """The token at `at` ends the first `prefix` tokens of `line`: aim at what the winning moves that begin so go on
    with, or at what any legal move does where no winning one begins so."""
    mass[:] = 0.0
    total = 0.0
    weight = FULL
    for winning in (True, False):
        for m in range(n):
            share = moves.weight[m] if winning else 1.0
            if share <= 0.0 or moves.length[m] <= prefix:
                continue
            same = True
            for k in range(prefix):
                if moves.text[m, k] != line[k]:
                    same = False
                    break
            if same:
                mass[moves.text[m, prefix]] += share
                total += share
        if total > 0.0:
            break
        weight = LEGAL_WEIGHT
    documents.weights[at] = weight if total > 0.0 else 0
    for token in range(WIDTH):
        documents.targets[at, token] = int(mass[token] / total * FULL + 0.5) if total > 0.0 else 0


@jit
def put_reward(documents: Documents, at: int, position: int, good: bool, tag: int) -> int:
    behind = put(documents, at, PRM, position)
    aim(documents, at, GOOD if good else BAD)
    documents.tags[at] = tag
    return behind


@jit
def draw_moves(moves: Moves, n: int, good: bool, wanted: int, chosen: NDArray[Any], taken: int) -> int:
    """Append up to `wanted` distinct moves to `chosen`: by weight where they have one, else evenly."""
    for _ in range(wanted):
        total = 0.0
        for m in range(n):
            if moves.good[m] == good and not moves.barred[m]:
                total += max(moves.weight[m], 1e-3)
        for k in range(taken):
            m = chosen[k]
            if moves.good[m] == good:
                total -= max(moves.weight[m], 1e-3)
        if total < 5e-4:
            break
        u = np.random.random() * total
        pick = -1
        for m in range(n):
            if moves.good[m] != good or moves.barred[m]:
                continue
            used = False
            for k in range(taken):
                used = used or chosen[k] == m
            if used:
                continue
            pick = m
            u -= max(moves.weight[m], 1e-3)
            if u < 0.0:
                break
        if pick < 0:
            break
        chosen[taken] = pick
        taken += 1
    return taken


@jit
def put_line(documents: Documents, at: int, position: int, line: NDArray[Any], length: int) -> int:
    for k in range(length):
        at = put(documents, at, line[k], position + k)
    return at


@jit
def put_end(documents: Documents, at: int, position: int, last: bool, good: bool, tag: int) -> int:
    """What follows a line's `)`, which stands just before `at`: its end and its reward."""
    if not last:
        at = put(documents, at, NEWLINE, position)
        return put_reward(documents, at, position + 1, good, tag)
    at = put_reward(documents, at, position, good, tag)
    if np.random.random() < 0.2:
        begin = at
        at = put(documents, at, EOS if np.random.random() < 0.7 else NEWLINE, position)
        at = put_reward(documents, at, position + 1, good, tag)
        documents.ends[begin] = at
    return at


@jit
def plant_error(moves: Moves, n: int, count: int, target: int, scratch: NDArray[Any], line: NDArray[Any]) -> int:
    """Write a move with an error into `line`; its length, or 0 where the draw came out legal.

    Errors: a result that is wrong (with two numbers left, mostly one that claims the target), a number that is not
    there, a wrong list of what remains.
    """
    m = np.random.randint(0, n)
    left, operator, right, result = (
        moves.operands[m, 0],
        moves.operands[m, 1],
        moves.operands[m, 2],
        moves.operands[m, 3],
    )
    for k in range(count - 1):
        scratch[k] = moves.states[m, k]
    at = 0
    while scratch[at] != result:
        at += 1
    kind = np.random.random()
    if count == 2 and kind < 0.7:
        result = target
    elif kind < 0.45:
        u = np.random.random()
        step = np.random.randint(1, 4) if u < 0.5 else (10 if u < 0.8 else np.random.randint(1, 100))
        result = max(0, result + (step if np.random.random() < 0.5 else -step))
    elif kind < 0.7:
        changed = max(1, left + np.random.randint(-5, 6))
        value = pair_value(changed, right, operator)
        if value < 0 or changed < right:
            return 0
        left = changed
        result = value
    elif count > 2:
        other = np.random.randint(0, count - 1)
        u = np.random.random()
        scratch[other] = max(0, scratch[other] + np.random.randint(-3, 4)) if u < 0.5 else moves.operands[m, 0]
        scratch[: count - 1].sort()
        length, _ = write_line(line, left, operator, right, result, scratch, count - 1)
        return length if differs(moves, n, line, length) else 0
    scratch[at] = result
    scratch[: count - 1].sort()
    length, _ = write_line(line, left, operator, right, result, scratch, count - 1)
    return length if differs(moves, n, line, length) else 0


@jit
def differs(moves: Moves, n: int, line: NDArray[Any], length: int) -> bool:
    """Whether the line is none of the legal moves."""
    for m in range(n):
        if moves.length[m] != length:
            continue
        same = True
        for k in range(length):
            if moves.text[m, k] != line[k]:
                same = False
                break
        if same:
            return False
    return True


class Frames(NamedTuple):
    """The states on the path that is being written, by depth."""

    moves: NDArray[Any]
    """How many moves the state has."""
    alive: NDArray[Any]
    position: NDArray[Any]
    """Of the first token below."""
    shown: NDArray[Any]
    """How many of them are shown; the next one; a bit for each that is followed."""
    next: NDArray[Any]
    follow: NDArray[Any]
    line: NDArray[Any]
    """First token of the line whose tree is being written, -1 if none."""


class Workspace(NamedTuple):
    """Scratch of one worker: the moves of each depth, the path's frames, and some states and lines."""

    moves: tuple[Moves, Moves, Moves, Moves, Moves]
    frames: Frames
    chosen: NDArray[Any]
    state: NDArray[Any]
    scratch: NDArray[Any]
    other: NDArray[Any]
    line: NDArray[Any]
    mass: NDArray[Any]


def new_workspace() -> Workspace:
    return Workspace(
        (new_moves(), new_moves(), new_moves(), new_moves(), new_moves()),
        Frames(*(np.zeros(MAX_COUNT, np.int64) for _ in Frames._fields)),
        np.zeros((MAX_COUNT, 16), np.int64),
        np.zeros(MAX_COUNT, np.int64),
        np.zeros(MAX_COUNT, np.int64),
        np.zeros(MAX_COUNT, np.int64),
        np.zeros(MAX_LINE, np.uint8),
        np.zeros(WIDTH, np.float64),
    )


@jit
def enter(frames: Frames, depth: int, moves: int, alive: bool, position: int) -> None:
    frames.moves[depth] = moves
    frames.alive[depth] = alive
    frames.position[depth] = position
    frames.shown[depth] = -1
    frames.next[depth] = 0
    frames.follow[depth] = 0
    frames.line[depth] = -1


@jit
def choose(work: Workspace, frames: Frames, depth: int, left: int, wide: bool) -> None:
    """Draw the lines that a state shows, and which of them are followed."""
    moves, chosen, n = work.moves[depth], work.chosen[depth], frames.moves[depth]
    if not frames.alive[depth]:
        frames.shown[depth] = draw_moves(moves, n, False, 1 if left < 5 else 2, chosen, 0)
        frames.follow[depth] = 1 if np.random.random() < FOLLOW_ON else 0
        return
    winners = draw_moves(moves, n, True, WIDE[left] if wide else WINNERS[left], chosen, 0)
    losers = WIDE[left] if wide else (LOSERS[left] if np.random.random() < SHOW_LOSERS[left] else 0)
    shown = draw_moves(moves, n, False, losers, chosen, winners)
    if wide:
        # A line of six numbers is followed, for the reward of its five; it need not be a winning one.
        frames.shown[depth], frames.follow[depth] = shown, 0
        if left > 5 and shown > 0:
            frames.follow[depth] = 1 << (0 if np.random.random() < 0.8 else shown - 1)
        return
    follow = min(winners, 1)
    if winners > 1 and np.random.random() < EXTRA_BRANCH[left]:
        follow |= 2
    if shown > winners and np.random.random() < FOLLOW_LOSER[left]:
        follow |= 1 << winners
    frames.shown[depth], frames.follow[depth] = shown, follow


@jit
def put_error(
    documents: Documents, work: Workspace, at: int, frames: Frames, depth: int, left: int, target: int
) -> int:
    """A line with an error in it, and its reward; the index behind them."""
    length = plant_error(work.moves[depth], frames.moves[depth], left, target, work.scratch, work.line)
    if length == 0:
        return at
    start = at
    at = put_line(documents, at, frames.position[depth], work.line, length)
    tag = tag_of(left + depth, depth + 1) + 1
    at = put_end(documents, at, frames.position[depth] + length, left == 2, False, tag)
    close(documents, start, length + (left > 2), at)
    return at


@jit
def put_move(documents: Documents, work: Workspace, at: int, frames: Frames, depth: int, left: int, m: int) -> int:
    """The line of move `m`, what each of its tokens aims at, and its reward; the index behind them."""
    moves = work.moves[depth]
    length = moves.length[m]
    start = at
    at = put_line(documents, at, frames.position[depth], moves.text[m], length)
    for k in range(length - 1):
        if k < moves.equals[m]:
            aim_at_moves(documents, start + k, moves, frames.moves[depth], moves.text[m], k + 1, work.mass)
        else:
            aim(documents, start + k, moves.text[m, k + 1])
    aim(documents, at - 1, NEWLINE if left > 2 else EOS)
    behind = frames.position[depth] + length
    return put_end(documents, at, behind, left == 2, moves.good[m], tag_of(left + depth, depth + 1))


@jit
def tag_of(numbers: int, lines: int) -> int:
    return 1 + 16 * (numbers - MIN_NUMBERS) + 2 * lines


@jit
def close(documents: Documents, start: int, length: int, end: int) -> None:
    """Everything below the line's tokens is written: that is where they end."""
    for k in range(length):
        documents.ends[start + k] = end


@jit
def put_steps(documents: Documents, work: Workspace, at: int, numbers: int, target: int, bar: bool) -> int:
    """Write the steps below a root whose frame is entered; the index behind them. Depth first, without recursion."""
    frames = work.frames
    begin = at
    depth = 0
    wide = np.random.random() < WIDE_SHARES[numbers - MIN_NUMBERS]
    while depth >= 0:
        left = numbers - depth
        if frames.shown[depth] < 0:
            choose(work, frames, depth, left, wide)
            if np.random.random() < ERROR[left]:
                at = put_error(documents, work, at, frames, depth, left, target)
        elif frames.line[depth] >= 0:
            line = work.chosen[depth, frames.next[depth] - 1]
            close(documents, frames.line[depth], work.moves[depth].length[line] + (left > 2), at)
        if frames.next[depth] == frames.shown[depth]:
            depth -= 1
            continue
        m = work.chosen[depth, frames.next[depth]]
        followed = (frames.follow[depth] >> frames.next[depth]) & 1
        frames.next[depth] += 1
        frames.line[depth] = at
        newline = at + work.moves[depth].length[m]
        at = put_move(documents, work, at, frames, depth, left, m)
        alive = work.moves[depth].good[m]
        followed = followed and at - begin < MAX_DOCUMENT
        if left > 2 and (followed or alive):
            # How a winning move goes on is known, so its newline aims there even where nothing is shown below it.
            child = work.moves[depth + 1]
            n = list_moves(work.moves[depth].states[m], left - 1, target, bar, child)
            aim_at_moves(documents, newline, child, n, work.line, 0, work.mass)
            if followed:
                depth += 1
                enter(frames, depth, n, alive, documents.positions[newline] + 1)
    return at


@jit
def put_prompt(documents: Documents, work: Workspace, at: int, numbers: int, target: int, moves: int) -> int:
    """Write the puzzle in `work.state`, whose first moves are listed, and aim its end at them; the index behind it."""
    at = put(documents, at, BOS, 0)
    length = write_state(work.line, 0, work.state, numbers)
    work.line[length] = EQUALS
    length = write_number(work.line, length + 1, target)
    work.line[length] = NEWLINE
    at = put_line(documents, at, 1, work.line, length + 1)
    aim_at_moves(documents, at - 1, work.moves[0], moves, work.line, 0, work.mass)
    return at


@jit
def put_document(documents: Documents, work: Workspace, at: int, validation: bool) -> int:
    """Draw a puzzle and write its document from `at` on; the index behind it.

    At most MAX_DOCUMENT_SIZE tokens are written.
    """
    numbers, target, n, alive = draw_puzzle(work.state, work.scratch, work.other, work.moves[0], validation)
    begin = at
    at = put_prompt(documents, work, at, numbers, target, n)
    root = at
    at = put_reward(documents, at, root - begin, alive, tag_of(numbers, 0))
    enter(work.frames, 0, n, alive, root - begin)
    at = put_steps(documents, work, at, numbers, target, not validation)
    close(documents, begin, root - begin, at)
    return at
