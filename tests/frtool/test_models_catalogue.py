"""Which models are found where, and why some of them cannot be searched."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from frtool.cli.app import run
from frtool.models.catalogue import FoundModel, find_models

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
    "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32,
}  # fmt: skip


def directory(path: Path, config: dict | str | None = None, *, cut: int = 0, tokenizer: bool = True) -> Path:
    path.mkdir(parents=True)
    config = LLAMA if config is None else config
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(128 - cut))
    if tokenizer:
        (path / "tokenizer.json").write_text("{}")
    return path


def gguf(path: Path, architecture: str = "llama") -> Path:
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    pair = string("general.architecture") + struct.pack("<I", 8) + string(architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair + bytes(64))
    return path


def found(*folders: Path, cache: Path | None = None) -> dict[str, FoundModel]:
    models = list(find_models(folders, cache or Path("/nonexistent")))
    assert models[0].kind == "embedded"
    return {model.name: model for model in models[1:]}


def test_directories_and_gguf_files_are_found_with_their_size(tmp_path):
    directory(tmp_path / "a")
    gguf(tmp_path / "deeper" / "still" / "b.gguf")
    gguf(tmp_path / "1" / "2" / "3" / "4" / "too-deep.gguf")
    gguf(tmp_path / ".hidden" / "c.gguf")
    models = found(tmp_path, tmp_path)
    assert [Path(name).name for name in models] == ["a", "b.gguf"]
    a = models[str(tmp_path / "a")]
    assert (a.kind, a.architecture, a.parameters, a.stored_bytes, a.refusal, a.tested) == (
        "directory", "llama", 32, 128, None, True,
    )  # fmt: skip
    assert models[str(tmp_path / "deeper" / "still" / "b.gguf")].refusal is None


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ({"model_type": "mamba"}, {}, "recurrent|causal|attention|state"),
        (LLAMA | {"model_type": "t5", "is_encoder_decoder": True}, {}, "encoder-decoder"),
        ({"model_type": "from-the-future"}, {}, "does not know"),
        ({}, {}, "names no model_type"),
        ("{", {}, "not valid JSON"),
        (None, {"cut": 5}, "cut short"),
        (None, {"tokenizer": False}, "no tokenizer"),
    ],
)
def test_models_that_cannot_be_searched_say_why(tmp_path, config, options, said):
    path = directory(tmp_path / "x", config, **options)
    model = found(tmp_path)[str(path)]
    assert model.refusal is not None
    assert any(word in model.refusal for word in said.split("|")), model.refusal
    assert "\n" not in model.refusal


def test_gguf_files_that_cannot_be_unpacked_say_why(tmp_path):
    good = gguf(tmp_path / "good.gguf")
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:40])
    (tmp_path / "empty.gguf").touch()
    gguf(tmp_path / "clip.gguf", "clip")
    gguf(tmp_path / "mamba.gguf", "mamba")
    gguf(tmp_path / "hostile.gguf", "\x1b[2J\u202e")
    models = {Path(name).name: model for name, model in found(tmp_path).items()}
    assert models.pop("good.gguf").refusal is None
    assert all(model.refusal for model in models.values()), models
    assert "clip" in models["clip.gguf"].refusal


def test_hub_cache_gives_the_current_snapshot_under_its_name(tmp_path):
    repository = tmp_path / "models--owner--name"
    directory(repository / "snapshots" / "aaa")
    directory(repository / "snapshots" / "bbb", LLAMA | {"hidden_size": 32})
    gguf(repository / "snapshots" / "aaa" / "q4.gguf")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa\n")
    (tmp_path / "models--half--done" / "snapshots" / "ccc").mkdir(parents=True)
    models = found(cache=tmp_path)
    assert set(models) == {"owner/name", "owner/name/q4.gguf"}
    assert models["owner/name"].path == repository / "snapshots" / "aaa"
    assert models["owner/name"].kind == "hub"


def test_command_prints_a_table_or_json(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("frtool.models.catalogue.hub_cache", lambda: tmp_path / "cache")
    path = directory(tmp_path / "a\x1b[2J")
    assert run(["models", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "\x1b" not in out
    assert err == ""
    assert len(out.splitlines()) == 3
    assert run(["models", str(tmp_path), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert [model["name"] for model in record["models"]] == ["embedded", str(path)]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_a_usage_error(name, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert run(["models", str(tmp_path / name)]) == 2
    assert capfd.readouterr().err.startswith("error: ")
