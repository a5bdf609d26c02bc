"""Tiny random models for the tests of everything that drives one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from frtool.engine import Engine, EngineOptions
from frtool.models.load import LoadedModel, RewardTokens, pack_weights
from frtool.search.protocols import Expand, Step

CHARACTERS = "0123456789+-*/=() \nabcdefghijklmnopqrstuvwxyz."
SPECIAL = ["<bos>", "<eos>", "<pad>", "<prm>", "<+>", "<->"]


def make_char_tokenizer(extra: list[str] | None = None) -> Any:
    """One token a character, one for each text of `extra`, and the special tokens of the embedded model."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: index for index, text in enumerate([*SPECIAL, *CHARACTERS, *(extra or [])])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<prm>", "<+>", "<->"],
    )


def make_byte_tokenizer() -> Any:
    """One token a byte, so that most characters beyond ASCII are made of several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def make_loaded(
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    tokenizer: Any = None,
    max_positions: int = 256,
    sharpness: float = 0.3,
    ends: bool = True,
    pack: bool = True,
    four_bit: bool = False,
    **config: Any,
) -> LoadedModel:
    """A random Llama of two layers. `sharpness`: spread of the weights; `ends`: whether it has an end token; `pack`:
    its weights where the processor packs any, as `load_model` does, or with `four_bit` to four bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from frtool.models.hook import ATTENTION_NAME

    tokenizer = make_char_tokenizer() if tokenizer is None else tokenizer
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": max_positions,
        "initializer_range": sharpness,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id if ends else None,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(LlamaConfig(**settings), attn_implementation=ATTENTION_NAME, dtype=dtype)
    known = tokenizer.get_vocab()
    marks = ("<prm>", "<+>", "<->")
    loaded = LoadedModel(
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        name="tiny",
        source="tiny",
        dtype=dtype,
        device=torch.device(device),
        parameters=sum(weight.numel() for weight in model.parameters()),
        vocab_size=settings["vocab_size"],
        max_positions=max_positions,
        position_note=None,
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        num_kv_heads=settings["num_key_value_heads"],
        head_dim=settings["head_dim"],
        eos_ids=frozenset({tokenizer.eos_token_id}) if ends else frozenset(),
        reward_tokens=RewardTokens(*(known[mark] for mark in marks)) if all(m in known for m in marks) else None,
        chat_template=False,
        is_embedded=False,
    )
    return pack_weights(loaded, four_bit) if pack else loaded


class Chain(torch.nn.Module):
    """A model whose next token depends on the last one only: `table` [vocab, vocab] holds its logits."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | int, **_: Any) -> SimpleNamespace:
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=self.table[input_ids[:, rows]])


def make_chain(follows: dict[str, dict[str, float]], **changes: Any) -> LoadedModel:
    """A model that goes from token to token with the probabilities in `follows`, evenly where nothing is said."""
    loaded = make_loaded()
    known = loaded.tokenizer.get_vocab()
    table = torch.zeros(len(known), len(known))
    for text, nexts in follows.items():
        table[known[text]] = float("-inf")
        for following, probability in nexts.items():
            table[known[text], known[following]] = torch.tensor(probability).log()
    return replace(loaded, model=Chain(table), **changes)


class Driver:
    """An engine that a test drives by hand. `steps` holds every finished step by the id of its node."""

    def __init__(self, loaded: LoadedModel, prompt: str = "make 24 from 4 5 6 10\n", **options: Any) -> None:
        self.loaded = loaded
        self.prompt_ids = loaded.tokenizer(prompt)["input_ids"]
        settings = {"delimiter": "\n", "max_step_tokens": 24, "num_blocks": 512, "block_size": 8, "batch": 8, **options}
        self.engine = Engine(loaded, self.prompt_ids, EngineOptions(**settings))
        self.steps: dict[str, Step] = {}
        self.asked: dict[str, Expand] = {}
        self._polls = 0

    def submit(self, parent: str, *ordinals: int, prefix: tuple[int, ...] = ()) -> None:
        for ordinal in ordinals:
            expand = Expand(parent, ordinal, prefix=prefix, uniform=0.5 if prefix else None)
            self.asked[expand.id] = expand
            self.engine.submit(expand)

    def poll(self) -> list[Step]:
        steps = self.engine.poll()
        self._polls += 1
        if self._polls % 5 == 0:
            self.engine.allocator.check()
        return steps

    def finish(self, keep: bool = True) -> None:
        """Poll until nothing is outstanding."""
        while self.engine.outstanding:
            for step in self.poll():
                self.steps[f"{step.parent}.{step.ordinal}"] = step
                if keep:
                    self.engine.keep(step)

    def grow(self, width: int, depth: int) -> dict[str, Step]:
        """All children of all nodes, level by level."""
        level = ["0"]
        for _ in range(depth):
            for name in level:
                self.submit(name, *range(width))
            self.finish()
            level = [f"{name}.{i}" for name in level for i in range(width)]
            level = [name for name in level if self.steps[name].finish == "step"]
        return self.steps

    def release_all(self) -> None:
        for name in ["0", *self.steps]:
            self.engine.release(name)
        self.engine.allocator.check()

    def path_ids(self, name: str) -> list[int]:
        """Token ids of the whole path to a kept node."""
        node, ids = self.engine.holdings.kept[name], []
        while node is not None:
            ids = node.tokens + ids
            node = node.parent
        return ids

    def plain_logits(self, ids: list[int]) -> torch.Tensor:
        """float32 [len(ids), vocab] of one ordinary causal pass over `ids`, without the tree attention."""
        model = self.loaded.model
        model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                return model(torch.tensor([ids], device=self.loaded.device), use_cache=False).logits[0].float().cpu()
        finally:
            model.set_attn_implementation("frtool_tree")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than these models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def loaded_model() -> Callable[..., LoadedModel]:
    return make_loaded


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    return make_loaded()


@pytest.fixture(scope="session")
def chain_model() -> Callable[..., LoadedModel]:
    return make_chain


@pytest.fixture
def drive() -> Callable[..., Driver]:
    return Driver


@pytest.fixture(scope="session")
def char_tokenizer() -> Callable[..., Any]:
    return make_char_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    return make_byte_tokenizer
