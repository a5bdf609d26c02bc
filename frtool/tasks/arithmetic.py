"""Arithmetic puzzles as the embedded model reads and writes them."""

from __future__ import annotations

from .puzzle import Puzzle, parse_puzzle
from .steps import expression, follow, parse_move

__all__ = ["ArithmeticTask", "Puzzle", "embedded_limit", "parse_puzzle"]

EMBEDDED_COUNT = range(3, 7)
EMBEDDED_NUMBERS = range(1, 101)
EMBEDDED_TARGETS = range(1, 1000)


def embedded_limit(puzzle: Puzzle) -> str | None:
    """Why the embedded model cannot take the puzzle, in one sentence; None when it can."""
    if len(puzzle.numbers) not in EMBEDDED_COUNT:
        return f"the embedded model combines 3 to 6 numbers, and the puzzle has {len(puzzle.numbers)}"
    outside = [value for value in puzzle.numbers if value not in EMBEDDED_NUMBERS]
    if outside:
        return f"the embedded model takes numbers from 1 to 100, and the puzzle has {outside[0]}"
    if puzzle.target not in EMBEDDED_TARGETS:
        return f"the embedded model takes targets from 1 to 999, and the puzzle has {puzzle.target}"
    return None


class ArithmeticTask:
    """A puzzle whose steps are the lines of `frtool.tasks.steps`: implements `search.protocols.Task`."""

    def __init__(self, puzzle: Puzzle) -> None:
        self.puzzle = puzzle

    @property
    def prompt_text(self) -> str:
        """What the embedded model continues, e.g. `4 5 6 10=24\\n`. Its tokenizer puts `<bos>` before it."""
        return f"{' '.join(map(str, sorted(self.puzzle.numbers)))}={self.puzzle.target}\n"

    def answer(self, text: str) -> str | None:
        """The expression that the path's steps build, e.g. `(10-6)*5+4`.

        None unless every step is a legal move and one number remains. Whether that number is the target is the
        verifier's business.
        """
        moves = follow(self.puzzle.numbers, text)
        return None if moves is None else expression(self.puzzle.numbers, moves)

    def key(self, text: str) -> str:
        """The step in canonical order, so that `4+6=10 (5 10)` and `6+4=10 (10 5)` are one child."""
        move = parse_move(text)
        if move is None:
            return " ".join(text.split())
        return f"{move.left}{move.operator}{move.right}={move.result} ({' '.join(map(str, move.state))})"

    def state(self, path_text: str) -> str | None:
        """The numbers that remain after a path of legal moves, e.g. `5 6 6`; None for any other text.

        Paths of equal state have the same continuations, each with the same worth.
        """
        moves = follow(self.puzzle.numbers, path_text)
        if moves is None:
            return None
        return " ".join(map(str, moves[-1].state if moves else sorted(self.puzzle.numbers)))
