"""Short training documents: a puzzle and how its winning first moves begin.

The first move is the hardest to find, and a tree spends some 225 tokens on one of them. Behind `=` a line follows from
what stands before it, so these documents stop there: some 35 tokens, with the same targets as a tree's first lines.
"""

from __future__ import annotations

from .compiled import jit
from .roots import draw_puzzle
from .trees import Documents, Workspace, aim_at_moves, close, draw_moves, put_line, put_prompt

SHOWN = 4
"""Most moves that are begun. What they aim at counts every winning move, shown or not."""


@jit
def put_first_moves(documents: Documents, work: Workspace, at: int) -> int:
    """Draw a training puzzle that has winning moves to aim at, and write its document from `at` on; the index behind
    it."""
    moves, chosen = work.moves[0], work.chosen[0]
    shown = 0
    while shown == 0 or moves.weight[chosen[0]] == 0.0:
        numbers, target, n, _ = draw_puzzle(work.state, work.scratch, work.other, moves, False)
        shown = draw_moves(moves, n, True, SHOWN, chosen, 0)
    begin = at
    at = put_prompt(documents, work, at, numbers, target, n)
    root = at
    for i in range(shown):
        m = chosen[i]
        start = at
        at = put_line(documents, at, root - begin, moves.text[m], moves.equals[m])
        for k in range(moves.equals[m]):
            aim_at_moves(documents, start + k, moves, n, moves.text[m], k + 1, work.mass)
        close(documents, start, moves.equals[m], at)
    close(documents, begin, root - begin, at)
    return at
