"""The embedded model without transformers is the embedded model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from frtool.engine import Engine, EngineOptions
from frtool.errors import ModelError
from frtool.models import load, packed, resolve
from frtool.models.prompt import chat_prompt_ids, plain_prompt_ids
from frtool.search.protocols import Expand

PROMPT = "24:4 5 6 10\n"

pytestmark = pytest.mark.skipif(
    not packed.can_pack(torch.device("cpu"), torch.float32), reason="this torch packs no weights"
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    if not packed.can_pack(torch.device("cpu"), getattr(torch, request.param)):
        pytest.skip(f"this torch packs no weights in {request.param}")
    return request.param


@pytest.fixture(scope="module")
def light(dtype):
    return load.load_model("embedded", device="cpu", dtype=dtype, light=True)


@pytest.fixture(scope="module")
def whole(dtype):
    return load.load_model("embedded", device="cpu", dtype=dtype)


def test_everything_a_search_asks_of_a_model_is_the_same(light, whole):
    for field in fields(light):
        if field.name not in ("model", "tokenizer"):
            assert getattr(light, field.name) == getattr(whole, field.name), field.name
    assert type(light.model) is not type(whole.model)


def test_prompts_and_texts_are_the_same(light, whole):
    for text in (PROMPT, "372:3 7 25 50\n25-3=22 (7 22 50)\n", ""):
        ids = plain_prompt_ids(light, text)
        assert ids == plain_prompt_ids(whole, text) == chat_prompt_ids(light, text)
        for skip in (True, False):
            assert light.tokenizer.decode(ids, skip) == whole.tokenizer.decode(ids, skip_special_tokens=skip)
    assert light.tokenizer.all_special_ids == sorted(whole.tokenizer.all_special_ids)
    assert len(light.tokenizer) == len(whole.tokenizer)


def test_samples_rewards_and_logits_are_the_same_bits(light, whole):
    grown = []
    for loaded in (light, whole):
        options = EngineOptions(num_blocks=256, batch=6, read_rewards=True, delimiter="\n", max_step_tokens=24)
        engine = Engine(loaded, plain_prompt_ids(loaded, PROMPT), options)
        for ordinal in range(12):
            engine.submit(Expand("0", ordinal))
        steps = []
        while engine.outstanding:
            steps += engine.poll()
        grown.append(steps)
        assert engine.trunk.logits is not None
        grown.append(engine.trunk.logits.tolist())
    assert grown[:2] == grown[2:]


def test_steps_have_the_same_bits_in_every_batch(light):
    trees = []
    for batch in (1, 7, 24):
        options = EngineOptions(num_blocks=256, batch=batch, read_rewards=True, delimiter="\n", max_step_tokens=24)
        engine = Engine(light, plain_prompt_ids(light, PROMPT), options)
        for ordinal in range(12):
            engine.submit(Expand("0", ordinal))
        steps = []
        while engine.outstanding:
            for step in engine.poll():
                steps.append(step)
                engine.keep(step)
                if step.parent == "0" and step.finish == "step":
                    engine.submit(Expand(f"0.{step.ordinal}", 0))
        trees.append(sorted(steps, key=lambda step: (step.parent, step.ordinal)))
    assert len(trees[0]) > 12
    assert trees[0] == trees[1] == trees[2]


def test_transformers_is_not_imported():
    code = (
        "import sys\nfrom frtool.models.load import load_model\nfrom frtool.engine import Engine, EngineOptions\n"
        "loaded = load_model('embedded', device='cpu', light=True)\nEngine(loaded, [1, 8, 9], EngineOptions())\n"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_weights_cannot_be_packed_transformers_computes(monkeypatch, whole):
    monkeypatch.setattr(load, "can_pack", lambda *_: False)
    assert type(load.load_model("embedded", device="cpu", light=True).model) is type(whole.model)


@pytest.mark.parametrize("damage", ["weights", "shape", "vocabulary", "tokenizer"])
def test_files_that_do_not_fit_together_are_one_clear_error(monkeypatch, tmp_path, damage):
    shutil.copytree(resolve.EMBEDDED_DIRECTORY, tmp_path / "model", ignore=shutil.ignore_patterns("training*"))
    directory = tmp_path / "model"
    config = json.loads((directory / "config.json").read_text())
    if damage == "weights":
        config["num_hidden_layers"] += 1
    elif damage == "vocabulary":
        config["vocab_size"] += 1
    elif damage == "shape":
        config["intermediate_size"] //= 2
    else:
        (directory / "tokenizer.json").write_text("{}")
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(resolve, "EMBEDDED_DIRECTORY", directory)
    with pytest.raises(ModelError, match="do not fit together"):
        load.load_model("embedded", device="cpu", light=True)
