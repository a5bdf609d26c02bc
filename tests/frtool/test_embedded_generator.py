from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from frtool.models.embedded.training.batches import BLOCK, Batch, batch_seed, make_batch
from frtool.models.embedded.training.evaluate import path_of
from frtool.models.embedded.training.moves import list_moves, new_moves
from frtool.models.embedded.training.solve import count3, count4, solvable
from frtool.models.embedded.training.vocabulary import BAD, BOS, EOS, GOOD, NEWLINE, PAD, PRM, TOKENS, decode
from frtool.tasks.held_out import is_held_out
from frtool.tasks.steps import combine, is_legal, parse_move

SIZE = 8_192


def reachable(numbers: tuple[int, ...], target: int) -> bool:
    """Brute force over every order of moves."""
    return orders(numbers, target) > 0


def orders(numbers: tuple[int, ...], target: int) -> int:
    if len(numbers) == 1:
        return int(numbers[0] == target)
    found = 0
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = tuple(value for k, value in enumerate(numbers) if k not in (i, j))
        left, right = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for operator in "+-*/":
            value = combine(left, operator, right)
            if value is not None:
                found += orders((*rest, value), target)
    return found


@dataclass(slots=True)
class Mark:
    """One `<prm>`: the puzzle and lines above it, whether they are legal, and its label."""

    numbers: tuple[int, ...]
    target: int
    states: list[tuple[int, ...]]
    legal: bool
    planted: bool
    good: bool
    ending: str


def read_marks(batch: Batch) -> list[Mark]:
    documents = batch.documents
    marks = []
    for at in np.flatnonzero(documents.tags):
        path = path_of(documents, int(at))
        assert path[0] == BOS
        assert path[-1] == PRM
        assert documents.positions[at] == len(path) - 1
        body = [token for token in path[1:-1] if token != EOS]
        head, *lines = decode(body).removesuffix("\n").split("\n")
        numbers = tuple(map(int, head.split("=")[0].split()))
        states, legal = [numbers], True
        for line in lines:
            move = parse_move(line)
            assert move is not None, line
            legal = legal and is_legal(move, states[-1])
            states.append(move.state)
        ending = "eos" if path[-2] == EOS else decode(path[-2:-1])
        label = documents.targets[at]
        assert int(label[GOOD]) + int(label[BAD]) == 255
        marks.append(
            Mark(
                numbers,
                int(head.split("=")[1]),
                states,
                legal,
                bool((documents.tags[at] - 1) & 1),
                int(label.argmax()) == GOOD,
                ending,
            )
        )
    return marks


@pytest.fixture(scope="module")
def training() -> Batch:
    return make_batch(SIZE, batch_seed(7, 0), first_moves=0.25)[0]


@pytest.fixture(scope="module")
def marks(training: Batch) -> list[Mark]:
    return read_marks(training)


def read_first_moves(batch: Batch) -> dict[tuple[tuple[int, ...], int], list[str]]:
    """The moves that each puzzle without a tree begins with, in what is shown of them: `10-4`."""
    documents = batch.documents
    starts = [*np.flatnonzero(documents.tokens == BOS), len(documents.tokens)]
    puzzles: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for start, stop in itertools.pairwise(starts):
        if documents.tags[start:stop].any():
            continue
        below = start + int(np.flatnonzero(documents.tokens[start:stop] == NEWLINE)[0]) + 1
        numbers, target = decode(documents.tokens[start + 1 : below - 1].tolist()).split("=")
        key = tuple(map(int, numbers.split())), int(target)
        puzzles[key] = []
        while below < stop and documents.tokens[below] != PAD:
            puzzles[key].append(decode(documents.tokens[below : documents.ends[below]].tolist()))
            below = int(documents.ends[below])
    return puzzles


def after(state: tuple[int, ...], written: str) -> tuple[int, ...]:
    """What is left of a state after the move `10-4`."""
    operator = next(c for c in written if c in "+-*/")
    left, right = map(int, written.split(operator))
    rest = list(state)
    rest.remove(left)
    rest.remove(right)
    value = combine(left, operator, right)
    assert value is not None
    return tuple(sorted([*rest, value]))


def test_nothing_held_out_is_ever_shown_in_training(training: Batch, marks: list[Mark]) -> None:
    seen = {(state, mark.target) for mark in marks for state in mark.states if len(state) >= 3 and mark.legal}
    assert len(seen) > 100
    begun = read_first_moves(training)
    assert len(begun) > 30
    for (numbers, target), written in begun.items():
        seen |= {(numbers, target), *((after(numbers, move), target) for move in written)}
    assert not [(state, target) for state, target in seen if len(state) >= 3 and is_held_out(state, target)]


def test_documents_of_first_moves_begin_winning_moves_alone(training: Batch) -> None:
    for (numbers, target), written in read_first_moves(training).items():
        assert 1 <= len(written) == len(set(written)) <= 4
        if len(numbers) <= 4:
            assert all(reachable(after(numbers, move), target) for move in written)


def test_first_moves_take_their_share_of_the_tokens() -> None:
    documents = make_batch(4_096, batch_seed(7, 2), first_moves=0.5)[0].documents
    starts = [*np.flatnonzero(documents.tokens == BOS), len(documents.tokens)]
    short = sum(stop - start for start, stop in itertools.pairwise(starts) if not documents.tags[start:stop].any())
    assert 0.4 < short / len(documents.tokens) < 0.65
    assert not read_first_moves(make_batch(2_048, batch_seed(7, 3), first_moves=0.5, validation=True)[0])


def test_a_state_that_leads_to_game_of_24_has_no_target_of_larger_numbers_alone() -> None:
    """The moves that are left there all make a number above 13: aimed at, they would teach that for target 24."""
    moves, state = new_moves(), np.array([1, 3, 5, 8, 11, 0])
    for target, bar, aimed in ((24, True, False), (24, False, True), (25, True, True)):
        n = list_moves(state, 5, target, bar, moves)
        assert (moves.weight[:n] > 0).any() == aimed
        assert moves.good[:n].any()
    assert moves.barred[:n].mean() < 0.3
    list_moves(state, 5, 24, True, moves)
    small = moves.states[:n, 3] <= 13
    assert small.any()
    assert moves.barred[:n][small].all()


def test_validation_puzzles_are_all_held_out() -> None:
    batch, count = make_batch(4_096, batch_seed(7, 1), validation=True)
    puzzles = {(mark.numbers, mark.target) for mark in read_marks(batch)}
    assert len(puzzles) == count > 5
    assert all(is_held_out(numbers, target) for numbers, target in puzzles)


def test_puzzles_keep_the_limits_of_the_model(marks: list[Mark]) -> None:
    for mark in marks:
        assert 3 <= len(mark.numbers) <= 6
        assert list(mark.numbers) == sorted(mark.numbers)
        assert 1 <= mark.numbers[0] <= mark.numbers[-1] <= 100
        assert 1 <= mark.target <= 999


def test_labels_are_true(marks: list[Mark]) -> None:
    for mark in marks:
        if len(mark.states[-1]) <= 4:
            assert mark.good == (mark.legal and reachable(mark.states[-1], mark.target)), mark
        assert mark.legal != mark.planted
    assert {mark.good for mark in marks} == {True, False}
    assert any(mark.planted for mark in marks)


def test_rewards_stand_where_a_search_reads_them(marks: list[Mark]) -> None:
    for mark in marks:
        if len(mark.states[-1]) > 1:
            assert mark.ending == "\n"
    last = {mark.ending for mark in marks if len(mark.states[-1]) == 1}
    assert last == {")", "\n", "eos"}


def test_every_aim_is_a_distribution_over_true_continuations(training: Batch) -> None:
    documents = training.documents
    aimed = np.flatnonzero((documents.weights > 0) & (documents.tags == 0))
    assert len(aimed) > SIZE / 2
    sums = documents.targets[aimed].astype(int).sum(1)
    assert sums.min() > 240
    assert sums.max() < 270
    for at in aimed[:400]:
        path = decode(path_of(documents, int(at))[1:])
        head, *lines = path.split("\n")
        target = int(head.split("=")[1]) if lines else 0
        state = tuple(map(int, head.split("=")[0].split()))
        for line in lines[:-1]:
            move = parse_move(line)
            assert move is not None
            assert is_legal(move, state)
            state = move.state
        if not lines:
            continue
        written = lines[-1]
        # Behind `=` a line is finished as it stands, be it a winning one or not.
        winning = len(state) <= 4 and "=" not in written and reachable(state, target)
        moves = [line for line in legal_lines(state, target, winning) if line.startswith(written)]
        if winning and not moves:
            # No winning move begins so: any legal one may go on.
            winning, moves = False, [line for line in legal_lines(state, target, False) if line.startswith(written)]
        allowed = {line[len(written)].replace("$", "<eos>") for line in moves}
        aimed_at = {TOKENS[token] for token in np.flatnonzero(documents.targets[at])}
        assert aimed_at <= allowed
        if len(state) <= 4 and "=" not in written:
            assert (documents.weights[at] == 255) == winning
            assert winning or aimed_at == allowed


def legal_lines(state: tuple[int, ...], target: int, winning: bool) -> list[str]:
    """Lines that may follow: all legal ones, or only those that keep the target in reach. `$` stands for `<eos>`."""
    lines = []
    for i, j in itertools.combinations(range(len(state)), 2):
        left, right = max(state[i], state[j]), min(state[i], state[j])
        for operator in "+-*/":
            value = combine(left, operator, right)
            if value is None:
                continue
            rest = tuple(sorted([*(v for k, v in enumerate(state) if k not in (i, j)), value]))
            if winning and not reachable(rest, target):
                continue
            end = "\n" if len(rest) > 1 else "$"
            lines.append(f"{left}{operator}{right}={value} ({' '.join(map(str, rest))}){end}")
    return lines


def test_tokens_see_their_own_path_only(training: Batch) -> None:
    documents = training.documents
    for at in np.flatnonzero(documents.tokens == NEWLINE)[:200]:
        path = path_of(documents, int(at))
        assert documents.positions[at] == len(path) - 1
        assert PRM not in path
        assert path.count(BOS) == 1


def test_the_mask_blocks_hold_everything_visible(training: Batch) -> None:
    ends = training.documents.ends
    rows = np.arange(SIZE)
    visible = (rows[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :])
    blocks = visible.reshape(SIZE // BLOCK, BLOCK, SIZE // BLOCK, BLOCK).any((1, 3))
    for block in range(SIZE // BLOCK):
        assert np.flatnonzero(blocks[block])[0] >= training.first_key_block[block]
        assert np.flatnonzero(blocks[:, block])[-1] <= training.last_query_block[block]


def test_batches_depend_on_seed_and_index_alone_and_share_no_puzzles() -> None:
    again, other = make_batch(2_048, batch_seed(3, 5))[0], make_batch(2_048, batch_seed(3, 6))[0]
    first = make_batch(2_048, batch_seed(3, 5))[0]
    assert np.array_equal(first.documents.tokens, again.documents.tokens)
    roots = [{(mark.numbers, mark.target) for mark in read_marks(batch)} for batch in (first, other)]
    assert not roots[0] & roots[1]


@pytest.mark.parametrize(("count", "cases"), [(2, 200), (3, 150), (4, 25), (5, 2)])
def test_solvability_equals_brute_force(count: int, cases: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(cases):
        state = np.sort(rng.integers(0, rng.choice([4, 14, 101]), count))
        target = int(rng.integers(0, rng.choice([12, 100, 1000])))
        numbers = tuple(map(int, state))
        assert bool(solvable(state, count, target)) == reachable(numbers, target), (numbers, target)


def test_orders_are_counted_exactly() -> None:
    assert count3(2, 3, 4, 24) == orders((2, 3, 4), 24) > 0
    assert count4(4, 5, 6, 10, 24) == orders((4, 5, 6, 10), 24) > 0
