"""The finished tree as nested JSON values."""

from __future__ import annotations

import math
from typing import Any

from frtool.search.events import ROOT_ID

from .model import TreeModel, ViewNode


def tree_record(model: TreeModel) -> dict[str, Any]:
    """The whole tree, children nested by ordinal, with nothing in it that a second run with the same seed could change.

    Values are correctly rounded means, so they do not depend on the order in which steps finished.
    """
    records: dict[str, dict[str, Any]] = {}
    values: dict[str, list[float]] = {}
    order = list(model.walk())
    for node in reversed(order):  # children before parents
        backed = values.setdefault(node.id, [])
        backed.extend(node.backed)
        below = [(c.ordinal, records.pop(c.id)) for c in node.children.values()]
        below += [(c.ordinal, _record(c, [])) for c in node.duplicates]
        records[node.id] = _record(node, backed)
        if below:
            records[node.id]["children"] = [record for _, record in sorted(below, key=lambda pair: pair[0])]
        if node.parent is not None:
            values.setdefault(node.parent.id, []).extend(backed)
        del values[node.id]
    return records[ROOT_ID]


def _record(node: ViewNode, backed: list[float]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": node.id, "text": node.text, "tokens": node.tokens}
    if node.parent is not None:
        record |= {"logprob": node.logprob, "prior": node.prior, "reward": node.reward}
    record |= {"visits": len(backed), "value": math.fsum(backed) / len(backed) if backed else None}
    for name in ("terminal", "answer", "verified", "duplicate_of", "pruned"):
        if getattr(node, name) is not None:
            record[name] = getattr(node, name)
    return record
