"""What can go wrong, in the user's words. The command line prints `message` and `hint`, never a traceback."""

from __future__ import annotations


class FrtoolError(Exception):
    """A known failure: one line that says what, a hint that says what to do, and the exit status.

    Exit statuses: 1 failure, 2 usage, 3 searched but not solved, 130 interrupted.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FrtoolError):
    """The call itself cannot work: an option, a prompt or a combination of them."""

    exit_code = 2


class ModelError(FrtoolError):
    """A model that is missing, corrupt, refused or too large."""
