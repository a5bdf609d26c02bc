"""Where a step ends, found on the text that the tokens decode to."""

from __future__ import annotations

from typing import Any

# A character is at most four bytes, so text that stays incomplete for longer than this is no UTF-8.
_MOST_PENDING = 4
_MOST_PIECES = 1 << 16


class Detokenizer:
    """Text of a token after what stands before it. Special tokens have none.

    Decoders merge bytes into characters and strip the space of the first word, so a token's text is the difference
    between two decodings, with and without it. Those are remembered.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        # Tokens that stand for bytes have the same text wherever a character may begin.
        self._in_bytes = type(getattr(self._backend, "decoder", None)).__name__ == "ByteLevel"
        self._pieces: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
        self.alone: dict[int, str] = {}
        """What `whole_piece` said."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, without special tokens."""
        if self._backend is not None:
            text: str = self._backend.decode(ids, skip_special_tokens=True)
        else:
            text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def piece(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        """What `ids` add to the text of `before`. It ends in U+FFFD where the last character is incomplete."""
        if self._in_bytes:
            before = ()
        key = (before, ids)
        piece = self._pieces.get(key)
        if piece is None:
            if len(self._pieces) >= _MOST_PIECES:
                self._pieces.clear()
            piece = self.decode([*before, *ids])
            if before:
                piece = piece[len(self.decode(list(before))) :]
            self._pieces[key] = piece
        return piece

    def whole_piece(self, token: int) -> str | None:
        """What a token adds after whole characters, where that depends on nothing and is whole characters itself."""
        if not self._in_bytes or token in self.special_ids:
            return None
        piece = self.decode([token])
        if piece.endswith("\ufffd"):
            return None
        if len(self.alone) >= _MOST_PIECES:
            self.alone.clear()
        self.alone[token] = piece
        return piece


class StepText:
    """The text of a growing step. It is whole once it holds the delimiter after something other than white space.

    The token that completes the delimiter belongs to the step with all its text, whatever follows the delimiter in it:
    so the steps of a path joined are the decoded path. A delimiter with nothing before it is part of the step that
    follows.
    """

    __slots__ = ("_before", "_delimiter", "_detokenizer", "_pending", "_searched", "_shown")

    def __init__(self, detokenizer: Detokenizer, delimiter: str, before: tuple[int, ...]) -> None:
        """`before`: `tail` of the path so far."""
        self._detokenizer = detokenizer
        self._delimiter = delimiter
        self._before = before
        self._pending: tuple[int, ...] = ()
        self._shown = ""
        self._searched = 0

    @property
    def text(self) -> str:
        """Everything so far. Bytes that make no character yet show as U+FFFD."""
        return self._shown + self._detokenizer.piece(self._before, self._pending) if self._pending else self._shown

    @property
    def tail(self) -> tuple[int, ...]:
        """The tokens that the text of a next one depends on."""
        return self._before + self._pending

    def push(self, token: int) -> bool:
        """Add a token; say whether the step is whole now."""
        detokenizer = self._detokenizer
        piece = None
        if not self._pending:
            piece = detokenizer.alone.get(token) or detokenizer.whole_piece(token)
        if piece is None:
            if token in detokenizer.special_ids:
                return False
            ids = (*self._pending, token)
            piece = detokenizer.piece(self._before, ids)
            if piece.endswith("\ufffd") and len(ids) < _MOST_PENDING:
                self._pending = ids
                return False
            self._pending = ()
        self._before = (token,)
        before = len(self._shown)
        self._shown += piece
        # It is this token that completes a delimiter which was not there before.
        return self._delimiter[-1] in piece and self._whole(before)

    def _whole(self, before: int) -> bool:
        delimiter, text = self._delimiter, self._shown
        while (at := text.find(delimiter, max(self._searched, before - len(delimiter) + 1))) >= 0:
            if text[self._searched : at].strip():
                return True
            self._searched = at + len(delimiter)
        return False


def tail(detokenizer: Detokenizer, ids: list[int]) -> tuple[int, ...]:
    """The last token of `ids` that has text: what the next token's text depends on."""
    return next(((token,) for token in reversed(ids) if token not in detokenizer.special_ids), ())
