"""Versions of what frtool stands on, read from the installed metadata, and whether they are in the tested range."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from frtool import __version__

from .check import FAILED, NOTE, OK, WARNING, Check

DISTRIBUTION = "flash-frtool"
_ALSO = ("huggingface-hub", "tokenizers")
_EXTRAS = {
    "matplotlib": "plots as files", "plotille": "plots in the terminal", "math-verify": "--verify math",
    "reasoning-gym": "its tasks in frtool eval",
}  # fmt: skip
"""What is needed for a part only, and for which."""


def check_versions() -> Iterator[Check]:
    yield Check("frtool", OK, f"{__version__} in {Path(__file__).parents[1]}")
    yield Check("python", OK, f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}")
    yield Check("system", OK, platform.platform())
    for name, wanted in _requirements():
        yield _check_version(name, wanted)
    for name in _ALSO:
        version = installed(name)
        if version is not None:
            yield Check(name, OK, version)
    for name, use in _EXTRAS.items():
        version = installed(name)
        yield Check(name, NOTE if version is None else OK, version or f"not installed; it is for {use}")


def check_kernels_clash() -> Check:
    """Whether `import kernels` finds what others mean by it: Hugging Face's package, not frtool's source folder."""
    spec = importlib.util.find_spec("kernels")
    where = Path(spec.origin or "") if spec is not None else None
    if where is None:
        return Check("`kernels` package", OK, "not installed; frtool's own are `frtool.kernels`")
    if (where.parent / "tree_kernel.py").is_file():
        return Check(
            "`kernels` package", WARNING, f"`import kernels` finds frtool's source folder {where.parent}",
            hint="transformers may take it for Hugging Face's package: run frtool from another folder",
        )  # fmt: skip
    return Check("`kernels` package", OK, f"{installed('kernels') or 'some'} in {where.parent}, beside frtool.kernels")


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The distributions that frtool requires on this system, each with its bounds such as `('>=', '2.11')`."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker or ('platform_system == "Linux"' in marker and platform.system() != "Linux"):
            continue
        match = re.match(r"\s*([\w.-]+)", requirement)
        if match:
            yield match[1], re.findall(r"(>=|<)\s*([\d.]+)", requirement)


def _check_version(name: str, wanted: list[tuple[str, str]]) -> Check:
    version = installed(name)
    if version is None:
        return Check(name, FAILED, "not installed", hint=f"pip install {name}")
    bounds = " and ".join(f"{sign} {bound}" for sign, bound in wanted)
    have = _numbers(version)
    if not have:
        return Check(name, NOTE, version)
    if all(have >= _numbers(b) if sign == ">=" else have < _numbers(b) for sign, b in wanted):
        return Check(name, OK, version)
    return Check(
        name, WARNING, f"{version}, tested is {bounds}", hint=f'pip install "{name}{",".join(map("".join, wanted))}"'
    )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
