"""`frtool resume`: a search that broke off goes on from its trace."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def resume(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace that `frtool search --trace` wrote.")],
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the tree.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the local model cache only.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the run use Python code that the model brings.")
    ] = False,
    trust_verify_command: Annotated[
        bool, typer.Option("--trust-verify-command", help="Let the run use the verifying program that the trace names.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the whole tree.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No tree while it grows, only the report.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Configuration, warnings, tracebacks.")] = False,
) -> int:
    """Go on with a search that was killed, interrupted or ran out of memory, to the tree that it would have grown.

    Finished steps are taken from the trace, which is written on; budgets count what was spent. A search that has ended
    gives its answer again. Exit status: as of `frtool search`.
    """
    from frtool.replay.verify import trusted_config
    from frtool.resume import Finished, read_trace

    from .searching import Output, answer, answer_again

    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    output = Output(trace, picture, json, quiet, not no_progress, verbose)
    found = read_trace(trace)
    if isinstance(found, Finished):
        return answer_again(found, output)
    config = trusted_config(
        trace,
        found.record.started,
        trust_remote_code=trust_remote_code,
        trust_verify_command=trust_verify_command,
    )
    return answer(lambda: replace(config, offline=config.offline or offline), output, found)
