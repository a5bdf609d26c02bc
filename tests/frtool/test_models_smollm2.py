"""Real text: SmolLM2-135M-Instruct from its GGUF file says through the pool what `generate` says."""

from __future__ import annotations

import pytest
import torch

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import plan_attention
from frtool.models.hook import ATTENTION_NAME, TreeBatch, forward_tree
from frtool.models.load import load_model
from frtool.models.prompt import chat_prompt_ids

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "Explain why the sky is blue.",
    "Name three fruits.",
    "What is 12 plus 30?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What is photosynthesis?",
]


@pytest.fixture(scope="module")
def smollm2(smollm2_file):
    stages: list[str] = []
    loaded = load_model(smollm2_file, device="cpu", dtype="fp32", on_progress=stages.append)
    assert len(stages) == 2
    return loaded


def greedy_in_pool(loaded, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy continuations of all prompts, decoded in one batch, up to and including the end token."""
    pool = PhysicalKVAllocator(
        sum(-(-(len(prompt) + count) // 16) for prompt in prompts),
        16,
        loaded.num_kv_heads,
        loaded.head_dim,
        num_layers=loaded.num_layers,
        dtype=loaded.dtype,
    )

    def advance(branches: list[int], tokens: list[list[int]]) -> list[int]:
        counts = [len(new) for new in tokens]
        spans = [(pool.length(branch) - new, pool.length(branch)) for branch, new in zip(branches, counts, strict=True)]
        slots = [slot for branch, span in zip(branches, spans, strict=True) for slot in pool.slots(branch, *span)]
        logits = forward_tree(
            loaded.model,
            torch.tensor([token for new in tokens for token in new]),
            torch.tensor([position for span in spans for position in range(*span)]),
            TreeBatch(pool, plan_attention(pool, branches, counts), torch.tensor(slots)),
            torch.tensor(counts).cumsum(0) - 1,
        )
        return logits.argmax(-1).tolist()

    branches = [pool.alloc_branch(len(prompt)).branch_id for prompt in prompts]
    texts = [[token] for token in advance(branches, prompts)]
    for _ in range(count - 1):
        live = [row for row, text in enumerate(texts) if text[-1] not in loaded.eos_ids]
        if not live:
            break
        pool.append_many([branches[row] for row in live], [1] * len(live))
        new = advance([branches[row] for row in live], [texts[row][-1:] for row in live])
        for row, token in zip(live, new, strict=True):
            texts[row].append(token)
    return texts


def greedy_alone(loaded, prompt: list[int], count: int) -> list[int]:
    """The same by transformers' `generate`."""
    loaded.model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([prompt])
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=sorted(loaded.eos_ids),
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()
    finally:
        loaded.model.set_attn_implementation(ATTENTION_NAME)


def test_the_gguf_brings_its_tokenizer_template_and_end_tokens(smollm2):
    ids = chat_prompt_ids(smollm2, PROMPTS[0], system="Answer briefly.")
    text = smollm2.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\nWhat is the capital")
    assert text.endswith("<|im_start|>assistant\n")
    assert smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>") in smollm2.eos_ids
    assert (smollm2.num_layers, smollm2.num_kv_heads, smollm2.head_dim) == (30, 3, 64)
    assert smollm2.max_positions == 8192
    assert smollm2.reward_tokens is None


def test_two_prompts_decoded_in_one_pool_equal_generate(smollm2):
    prompts = [chat_prompt_ids(smollm2, prompt) for prompt in PROMPTS[:2]]
    assert greedy_in_pool(smollm2, prompts, 8) == [greedy_alone(smollm2, prompt, 8) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_prompts_of_64_tokens_equal_generate(smollm2):
    prompts = [chat_prompt_ids(smollm2, prompt) for prompt in PROMPTS]
    assert greedy_in_pool(smollm2, prompts, 64) == [greedy_alone(smollm2, prompt, 64) for prompt in prompts]
