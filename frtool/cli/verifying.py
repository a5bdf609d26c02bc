"""The verdict of `frtool replay --verify`: the search run again under the live view."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from frtool.view import view_for
from frtool.view.safe import safe_json, safe_line

from .compare import tree_verdict
from .errors import FAILED
from .show import print_text

if TYPE_CHECKING:
    from frtool.export.recorded import RecordedSearch
    from frtool.replay.verify import Verification


def verify_search(
    search: RecordedSearch, *, device: str | None, trust_remote_code: bool, trust_verify_command: bool, json: bool
) -> int:
    """Run it again, print the verdict, and return 0 where the trees are the same."""
    from frtool.replay.verify import recorded_config, verify

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    trust = {"trust_remote_code": trust_remote_code, "trust_verify_command": trust_verify_command}
    config = recorded_config(search, device=device, **trust)
    # What a library prints is talk: stdout bears the verdict alone.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), view_for() as view:
        warnings.simplefilter("ignore")
        verification = verify(search, config, on_progress=view.progress, on_event=view.show)
    same = verification.comparison.difference is None
    print_text(safe_json(_record(verification), indent=2) + "\n" if json else _report(search, verification))
    return 0 if same else FAILED


def _report(search: RecordedSearch, verification: Verification) -> str:
    lines = [
        f"{name}: recorded with {safe_line(str(there), 100)}, now {safe_line(str(here), 100)}"
        for name, (there, here) in verification.surroundings.items()
    ]
    lines.append(tree_verdict(verification.comparison, "recorded", "again"))
    if not verification.whole:
        lines.append(f"the recorded search ended by `{safe_line(search.ended.reason, 60)}`: compared up to there")
    return "\n".join(lines) + "\n"


def _record(verification: Verification) -> dict[str, Any]:
    comparison = verification.comparison
    return {
        "same": comparison.difference is None,
        "whole": verification.whole,
        "same_steps": comparison.same,
        "largest_deviation": comparison.deviation,
        "first_difference": None if comparison.difference is None else asdict(comparison.difference),
        "surroundings": {k: list(v) for k, v in verification.surroundings.items()},
    }
