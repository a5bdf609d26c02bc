from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frtool.models.embedded.training.vocabulary import CHARACTERS, SPECIAL_TOKENS, TOKENS
from frtool.tasks.arithmetic import ArithmeticTask, Puzzle
from frtool.verify.arithmetic import ArithmeticVerifier

DIRECTORY = Path(str(files("frtool.models.embedded")))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


def test_the_checkpoint_keeps_its_limits(model: Any) -> None:
    assert (DIRECTORY / "model.safetensors").stat().st_size <= 40_000_000
    assert model.num_parameters() <= 20_000_000
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(TOKENS)
    assert model.config.eos_token_id == TOKENS.index("<eos>")


def test_one_character_is_one_token_behind_bos(tokenizer: Any) -> None:
    text = "4 5 6 10=24\n10-4=6 (5 6 6)\n6*5/1+0\n"
    ids = tokenizer(text).input_ids
    assert ids == [TOKENS.index("<bos>"), *(TOKENS.index(c) for c in text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer(CHARACTERS, add_special_tokens=False).input_ids == list(range(6, 25))


def test_the_roles_are_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(6))
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == SPECIAL_TOKENS[:3]


def reward(model: Any, tokenizer: Any, text: str) -> float:
    logits = model(input_ids=torch.tensor([tokenizer(text + "<prm>").input_ids])).logits[0, -1].float()
    good, bad = tokenizer.convert_tokens_to_ids(["<+>", "<->"])
    return float(torch.softmax(logits[[good, bad]], 0)[0])


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("10-4=6 (5 6 6)\n", True),
        ("10*4=40 (5 6 40)\n", False),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n", True),
        ("10-4=6 (5 6 6)\n6+5=11 (6 11)\n", False),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n30-6=24 (24)", True),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n30-6=24 (24)\n", True),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n30-6=24 (24)<eos>", True),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n30+6=36 (36)", False),
        ("10-4=6 (5 6 6)\n6+5=11 (6 11)\n11+6=24 (24)", False),
    ],
)
@torch.no_grad()
def test_the_reward_tells_winning_steps_from_lost_ones(model: Any, tokenizer: Any, path: str, good: bool) -> None:
    assert (reward(model, tokenizer, "4 5 6 10=24\n" + path) > 0.5) == good


@torch.no_grad()
def test_some_of_a_few_samples_are_right(model: Any, tokenizer: Any) -> None:
    puzzle = Puzzle((4, 5, 6, 10), 24)
    task = ArithmeticTask(puzzle)
    torch.manual_seed(0)
    ids = tokenizer([task.prompt_text] * 64, return_tensors="pt").input_ids
    written = model.generate(input_ids=ids, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=64)
    texts = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    answers = [task.answer(text) for text in texts]
    assert sum(answer is not None for answer in answers) > 32
    assert any(answer is not None and ArithmeticVerifier(puzzle).verify(answer) for answer in answers)


def test_the_training_record_lies_beside_the_weights() -> None:
    record = json.loads((DIRECTORY / "training.json").read_text())
    assert record["parameters"] <= 20_000_000
    assert record["history"][0]["reward"] > record["history"][-1]["reward"]
    assert set(record["validation"]) == {"policy", "reward", "reward_right"}
