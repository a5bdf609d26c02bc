"""Writing results to files, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from frtool.errors import FrtoolError, UsageError


def check_writable(path: Path) -> None:
    """Raise UsageError where `path` can certainly not be written, before anything is computed."""
    reason = None
    try:
        if not str(path) or path.is_dir():
            reason = "it is a directory"
        elif not path.parent.is_dir():
            reason = "there is no such folder"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise UsageError(f"cannot write {path}: {reason}")


def save_text(path: Path, text: str) -> None:
    """Write UTF-8 text. A regular file is replaced as a whole; a device or a pipe is written into.

    Raises FrtoolError naming the file.
    """
    save_bytes(path, text.encode("utf-8", "backslashreplace"))


def save_bytes(path: Path, data: bytes) -> None:
    """`save_text` of any data."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        _replace(path.resolve(), data)
    except OSError as error:
        raise FrtoolError(f"cannot write {path}: {error.strerror or error}") from None


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
