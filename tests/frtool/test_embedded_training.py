from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from frtool.eval.tasks import load_items
from frtool.models.embedded.training.average import average
from frtool.models.embedded.training.batches import batch_seed, empty_batch, make_batch
from frtool.models.embedded.training.checkpoint import join_parts, load_weights, write_checkpoint, write_parts
from frtool.models.embedded.training.evaluate import auc, path_of, reliability
from frtool.models.embedded.training.network import DeviceBatch, Reasoner, Shape, losses, tree_mask
from frtool.models.embedded.training.optimizer import orthogonalise, rate_at
from frtool.models.embedded.training.problems import game_of_24
from frtool.models.embedded.training.vocabulary import VOCABULARY_SIZE

TINY = Shape(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48, head_dim=16
)


def tiny_reasoner() -> Reasoner:
    torch.manual_seed(0)
    reasoner = Reasoner(TINY)
    for parameter in reasoner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return reasoner


def test_a_saved_tree_network_is_the_llama_that_transformers_loads(tmp_path: Path) -> None:
    reasoner = tiny_reasoner()
    write_checkpoint(tmp_path, reasoner.checkpoint(torch.float32), TINY)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    batch = make_batch(1_024, batch_seed(1, 0))[0]
    inputs = DeviceBatch.of(batch, torch.device("cpu"))
    with torch.no_grad():
        packed = reasoner(inputs, tree_mask(inputs))
        for at in np.flatnonzero(batch.documents.tags)[:30]:
            alone = llama(input_ids=torch.tensor([path_of(batch.documents, int(at))])).logits[0, -1]
            torch.testing.assert_close(packed[at, :VOCABULARY_SIZE], alone, atol=1e-4, rtol=0)


def test_parts_join_to_the_same_weights(tmp_path: Path) -> None:
    tensors = tiny_reasoner().checkpoint(torch.bfloat16)
    write_parts(tmp_path, tensors, 8_000)
    assert len(list(tmp_path.glob("part-*.safetensors"))) > 2
    joined = join_parts(tmp_path)
    assert joined.keys() == tensors.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in tensors.items())


def test_an_average_lies_on_the_line_between_two_checkpoints() -> None:
    first, second = ({"a": torch.full((2, 3), value, dtype=torch.bfloat16)} for value in (1.0, 3.0))
    assert torch.equal(average(first, second, 0.25)["a"], torch.full((2, 3), 1.5, dtype=torch.bfloat16))
    assert torch.equal(average(first, second, 1.0)["a"], second["a"])
    with pytest.raises(ValueError, match="same tensors"):
        average(first, {"a": torch.zeros(3)}, 0.5)


def test_a_training_goes_on_from_the_weights_that_were_saved(tmp_path: Path) -> None:
    first, second = tiny_reasoner(), Reasoner(TINY)
    write_checkpoint(tmp_path, first.checkpoint(torch.float32), TINY)
    load_weights(second, tmp_path)
    inputs = DeviceBatch.of(make_batch(1_024, batch_seed(1, 2))[0], torch.device("cpu"))
    with torch.no_grad():
        before, after = (reasoner(inputs, tree_mask(inputs)) for reasoner in (first, second))
    assert torch.equal(before[:, :VOCABULARY_SIZE], after[:, :VOCABULARY_SIZE])
    assert torch.equal(after[:, VOCABULARY_SIZE:], after[:, :1].expand(-1, after.shape[1] - VOCABULARY_SIZE))


def test_what_judges_a_training_holds_no_puzzle_that_is_reported() -> None:
    judged = {puzzle.numbers for puzzle in game_of_24(40, 3)}
    reported = {tuple(sorted(item.puzzle.numbers)) for item in load_items("game24") if item.puzzle is not None}
    assert len(judged) == 40
    assert len(reported) == 100
    assert not judged & reported


def test_loss_is_zero_where_the_aim_is_met_and_for_padding() -> None:
    batch = DeviceBatch.of(make_batch(1_024, batch_seed(1, 1))[0], torch.device("cpu"))
    targets = batch.targets.float()
    perfect = (targets / targets.sum(-1, keepdim=True).clamp(min=1)).clamp(min=1e-12).log()
    total, policy, reward = losses(perfect, batch.targets, batch.weights, batch.tags, 12.0)
    assert max(float(total), float(policy), float(reward)) < 1e-5
    uniform = losses(torch.zeros_like(perfect), batch.targets, batch.weights, batch.tags, 12.0)
    assert float(uniform[2]) > 3.0
    batch.weights[:], batch.tags[:] = torch.where(batch.targets.sum(-1) > 0, 128, 0), 0
    allowed = torch.where(batch.targets > 0, torch.randn(batch.targets.shape), torch.tensor(-30.0))
    assert float(losses(allowed, batch.targets, batch.weights, batch.tags, 12.0)[1]) < 0.05
    padding = DeviceBatch.of(empty_batch(256), torch.device("cpu"))
    assert float(losses(torch.randn(256, 32), padding.targets, padding.weights, padding.tags, 12.0)[0]) == 0.0


def test_orthogonalised_steps_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 48), (2, 48, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    assert rate_at(0.0, warm=0.01, decay=0.4) == 0.0
    assert rate_at(0.5, warm=0.01, decay=0.4) == 1.0
    assert 0.0 < rate_at(0.9, warm=0.01, decay=0.4) < 0.3
    assert rate_at(1.0, warm=0.01, decay=0.4) == 0.0


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0.1, 0.9]), np.array([False, True])) == 1.0
    assert auc(np.array([0.5, 0.5]), np.array([False, True])) == 0.5
    assert auc(np.array([0.9, 0.1, 0.5]), np.array([False, True, True])) == 0.0
    assert auc(np.array([0.9]), np.array([True])) is None


def test_reliability_counts_scores_by_tenths() -> None:
    scores, good = np.array([0.01, 0.05, 0.55, 1.0]), np.array([False, True, False, True])
    assert reliability(scores, good) == [
        {"labels": 2, "mean_reward": 0.03, "good": 0.5},
        {"labels": 1, "mean_reward": 0.55, "good": 0.0},
        {"labels": 1, "mean_reward": 1.0, "good": 1.0},
    ]


def test_the_training_script_runs_to_a_checkpoint(tmp_path: Path) -> None:
    sizes = ["--steps=2", "--tokens=1024", "--workers=1", "--layers=1", "--width=32", "--evaluate=0"]
    command = [sys.executable, "-m", "frtool.models.embedded.training.train", "--out", str(tmp_path), *sizes]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["steps"] == 2
    assert record["settings"]["init"] is None
    assert record["validation"]["reward"] > 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == 1
