"""The distribution: every folder of modules is in it, and the version is nobody else's."""

from __future__ import annotations

import tomllib
from pathlib import Path

import frtool

ROOT = Path(__file__).parent.parent


def test_every_package_folder_is_in_the_distribution() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"frtool": ROOT / "frtool", "frtool.kernels": ROOT / "kernels", "frtool.search": ROOT / "search"}
    found = {
        ".".join([name, *module.parent.relative_to(folder).parts])
        for name, folder in folders.items()
        for module in folder.rglob("*.py")
    }
    assert found == set(settings["packages"])


def test_version_is_the_same_in_the_package_and_its_metadata() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == frtool.__version__


def test_version_stays_out_of_the_window_in_which_transformers_takes_a_kernels_folder_for_its_own() -> None:
    major, minor, *_ = (int(part) for part in frtool.__version__.split("."))
    assert (major, minor) not in {(0, 16), (0, 17), (0, 18)}


def test_kernels_folder_bears_no_version_and_imports_nothing_heavy() -> None:
    text = (ROOT / "kernels" / "__init__.py").read_text()
    assert "__version__" not in text
    assert "import torch" not in text
    assert "import triton" not in text


def test_the_import_contract_names_every_part_of_the_application() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    folder = ROOT / "frtool"
    parts = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    parts |= {path.name for path in folder.iterdir() if any(path.glob("*.py"))}
    for contract in contracts:
        missing = {f"frtool.{part}" for part in parts} - set(contract["forbidden_modules"])
        assert not missing, f"the contract {contract['name']!r} misses {missing}"
