"""What a model name means, what loading it tells, and every way in which it can fail: one line and a hint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from frtool.errors import ModelError, UsageError
from frtool.models import load, memory, resolve
from frtool.models.devices import cpu_has_bf16
from frtool.models.hook import ATTENTION_NAME
from frtool.models.load import RewardTokens, load_model
from frtool.models.prompt import chat_prompt_ids

TINY = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
WORDS = ["<s>", "</s>", "<unk>", "hello", "world", "user", "assistant", ":", "<prm>", "<+>", "<->", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


def save_tokenizer(directory: Path, words: list[str] = WORDS, template: str | None = None) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[word for word in words if word.startswith("<") and len(word) > 2][3:],
    )
    fast.chat_template = template
    fast.save_pretrained(directory)


def save_model(directory: Path, kind: str = "llama", **settings) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TINY | settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def directory(whole, tmp_path) -> Path:
    """A copy of a good model, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "tiny-llama"))


def failure(spec: object, **options) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(spec), **options)
    error = caught.value
    assert error.message.isprintable()
    assert "\n" not in error.message
    return error


def test_a_directory_loads_with_everything_that_a_search_needs(whole):
    stages: list[str] = []
    loaded = load_model(str(whole), device="cpu", dtype="fp32", on_progress=stages.append)
    assert loaded.name == "tiny-llama"
    assert (loaded.num_layers, loaded.num_heads, loaded.num_kv_heads, loaded.head_dim) == (2, 4, 2, 8)
    assert (loaded.vocab_size, loaded.max_positions, loaded.position_note) == (16, 64, None)
    assert loaded.dtype == torch.float32
    assert loaded.parameters == sum(tensor.numel() for tensor in load_file(whole / "model.safetensors").values())
    assert loaded.eos_ids == {1, 11}
    assert loaded.reward_tokens == RewardTokens(query=8, good=9, bad=10)
    assert not loaded.chat_template
    assert not loaded.is_embedded
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == ATTENTION_NAME
    assert stages[-1].startswith("loading tiny-llama")


def test_loading_writes_nothing_to_the_terminal(whole, capfd):
    load_model(str(whole), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_the_number_format_can_be_chosen(whole):
    assert next(load_model(str(whole), dtype="bf16").model.parameters()).dtype == torch.bfloat16


def test_a_prompt_goes_through_the_chat_template(directory):
    save_tokenizer(directory, template=TEMPLATE)
    loaded = load_model(str(directory))
    assert loaded.chat_template
    assert chat_prompt_ids(loaded, "hello world") == [5, 7, 3, 4, 6, 7]


def test_a_prompt_without_a_template_is_plain_text(whole):
    assert chat_prompt_ids(load_model(str(whole)), "hello world", system="world") == [4, 3, 4]


def test_a_failing_chat_template_is_reported(directory):
    save_tokenizer(directory, template="{{ raise_exception('no system role') }}")
    loaded = load_model(str(directory))
    with pytest.raises(ModelError, match="no system role"):
        chat_prompt_ids(loaded, "hello", system="world")


def test_no_reward_tokens_without_all_three(directory):
    save_tokenizer(directory, words=[word for word in WORDS if word != "<+>"])
    assert load_model(str(directory)).reward_tokens is None


def test_sharded_weights_load(whole, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    save_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(str(tmp_path), dtype="fp32")
    hidden = torch.randn(8, model.config.hidden_size)
    torch.testing.assert_close(loaded.model.lm_head(hidden), model.lm_head(hidden))


# Bad input


def test_nothing_at_the_path(tmp_path):
    error = failure(tmp_path / "absent")
    assert "no such file or directory" in error.message
    assert error.hint


def test_a_missing_gguf_is_not_taken_for_a_hub_id():
    assert "no such file" in failure("SmolLM2.Q4_1.gguf").message


def test_an_empty_name():
    assert "empty" in failure(" ").message


def test_a_directory_without_config(directory):
    (directory / "config.json").unlink()
    assert "no config.json" in failure(directory).message


@pytest.mark.parametrize("content", ['{"model_type": "llama"', "[]", "", "\x00\x01", "[" * 100_000])
def test_a_corrupt_config(directory, content):
    (directory / "config.json").write_text(content)
    assert "config.json" in failure(directory).message


def test_a_config_that_names_no_architecture(directory):
    (directory / "config.json").write_text('{"hidden_size": 4}')
    assert "model_type" in failure(directory).message


def change_config(directory: Path, **settings) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_config_with_impossible_values(directory):
    change_config(directory, num_attention_heads="many")
    assert "'num_attention_heads'" in failure(directory).message


def test_an_unknown_architecture_and_hostile_text(directory):
    change_config(directory, model_type="\x1b[31mnew\x1b]0;x\x07")
    error = failure(directory)
    assert "transformers does not know" in error.message
    assert "newer" in error.hint


def test_a_model_with_its_own_code_needs_consent(directory):
    change_config(directory, model_type="brand_new", auto_map={"AutoConfig": "code.Config"})
    assert "--trust-remote-code" in failure(directory).hint


@pytest.mark.parametrize("keep", [0, 4, 100, -1000])
def test_truncated_weights(directory, keep):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "cut short" in failure(directory).message


def test_weights_with_a_corrupt_header(directory):
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"????"
    path.write_bytes(bytes(data))
    assert "corrupt header" in failure(directory).message


def test_a_git_lfs_pointer(directory):
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    error = failure(directory)
    assert "LFS" in error.message
    assert "git lfs pull" in error.hint


def test_a_missing_shard(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in failure(directory).message


def test_an_index_must_not_leave_its_directory(directory):
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside" in failure(directory).message


def test_pickled_weights_are_refused_by_name(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    error = failure(directory)
    assert "pytorch_model.bin" in error.message
    assert "safetensors" in error.hint
    assert "pickle" in failure(directory / "pytorch_model.bin").message


def test_no_weights_at_all(directory):
    (directory / "model.safetensors").unlink()
    assert "no model.safetensors" in failure(directory).message


def test_one_file_of_a_model(directory):
    assert str(directory) in failure(directory / "model.safetensors").hint


def test_weights_that_lack_a_tensor(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "up_proj" in failure(directory).message


def test_weights_of_another_size(directory):
    change_config(directory, intermediate_size=40)
    assert "is [32, 48], not [32, 40]" in failure(directory).message


def test_no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    assert "no tokenizer" in failure(directory).message


def test_a_corrupt_tokenizer(directory):
    (directory / "tokenizer.json").write_text('{"version": ')
    assert "tokenizer" in failure(directory).message


def test_an_adapter(directory):
    (directory / "adapter_config.json").write_text("{}")
    assert "adapter" in failure(directory).message


def test_too_little_memory_is_said_with_numbers(directory, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 50_000_000)
    error = failure(directory)
    assert "needs 0.1 MB" in error.message
    assert "50.0 MB free" in error.message


def test_a_hub_model_that_is_not_cached_while_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = failure("someone/some-model", offline=True)
    assert "offline" in error.message
    assert "someone/file.gguf" not in failure("someone/some-model/file.gguf", offline=True).message


def test_a_cached_hub_model_loads_offline(whole, monkeypatch, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(whole, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_model("someone/tiny", offline=True).name == "someone/tiny"
    (repository / "snapshots" / revision / "model.safetensors").unlink()
    assert "offline" in failure("someone/tiny", offline=True).message


@pytest.mark.parametrize("option", [{"device": "tpu"}, {"device": "cuda:99"}, {"dtype": "int8"}, {"device": "meta"}])
def test_a_device_or_number_format_that_does_not_exist(whole, option):
    with pytest.raises(UsageError):
        load_model(str(whole), **option)


def test_the_embedded_model_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(resolve, "EMBEDDED_DIRECTORY", tmp_path)
    assert "embedded" in failure("embedded").message


def test_the_embedded_directory_is_marked(whole, monkeypatch):
    monkeypatch.setattr(resolve, "EMBEDDED_DIRECTORY", whole)
    assert load_model("embedded", device="cpu").is_embedded


@pytest.mark.parametrize("light", [False, True])
def test_the_embedded_model_computes_in_bf16_where_the_processor_does(light):
    native = torch.bfloat16 if cpu_has_bf16() else torch.float32
    assert load_model("embedded", device="cpu", light=light).dtype == native


# GGUF


def write_gguf(path: Path, architecture: str = "llama", quantized: bool = False) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_token_list([b"a", b"bc"])
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.add_tensor("output.weight", np.ones((4, 8), dtype=np.float16))
    if quantized:
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor("v", gguf.quantize(np.ones((4, 32), dtype=np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_of_a_gguf_file(tmp_path):
    from frtool.models.gguf_header import read_gguf_header

    header = read_gguf_header(write_gguf(tmp_path / "m.gguf"))
    assert (header.architecture, header.parameters) == ("llama", 160)
    assert header.metadata["llama.block_count"] == 1
    assert not header.is_quantized
    assert read_gguf_header(write_gguf(tmp_path / "q.gguf", quantized=True)).is_quantized


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path):
    from frtool.models.gguf_header import read_gguf_header

    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(data) - 40, 7):
        cut.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"GGUF|cut short"):
            read_gguf_header(cut)


def test_bytes_that_are_no_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model" * 100)
    assert "does not begin with GGUF" in failure(path).message
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    assert "version" in failure(path).message
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 100)
    assert "corrupt" in failure(path).message


def test_a_gguf_architecture_that_cannot_be_unpacked(tmp_path):
    error = failure(write_gguf(tmp_path / "m.gguf", architecture="bert"))
    assert "'bert'" in error.message
    assert "safetensors" in error.hint


def test_a_directory_with_several_gguf_files_asks_which(tmp_path):
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    error = failure(tmp_path)
    assert "a.gguf, b.gguf" in error.message


def test_a_gguf_too_large_for_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert "0.0 MB free" in failure(write_gguf(tmp_path / "m.gguf")).message


def test_threads_are_set_before_the_weights_load(whole, monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(load, "set_threads", lambda *_: order.append("threads"))
    load_model(str(whole), on_progress=lambda stage: order.append("stage"))
    assert order[:2] == ["threads", "stage"]
