"""A user's own program as the judge of an evaluation's answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from frtool.verify.command import CommandVerifier, split_command

from .items import Item


def judged_by_command(items: Iterable[Item], command: str, seconds: float) -> list[Item]:
    """The items with `command` as their verifier.

    The program gets the answer as `CommandVerifier` says. Arguments that are just `{id}`, `{prompt}` or `{expected}`
    are replaced by those of the item; an item without an expected answer has an empty one. Raises UsageError for a
    command that cannot be split or found.
    """
    arguments = split_command(command)

    def fill(item: Item) -> str:
        values = {"{id}": item.id, "{prompt}": item.prompt, "{expected}": item.expected or ""}
        return shlex.join(values.get(argument, argument) for argument in arguments)

    return [replace(item, verifier=CommandVerifier(fill(item), seconds=seconds)) for item in items]
