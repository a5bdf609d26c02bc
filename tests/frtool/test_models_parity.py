"""The pool holds a tree, and the model computes on every branch what it computes on the branch's path alone."""

from __future__ import annotations

import pytest
import torch
import transformers

from frtool.bench.decode_models import Numerals
from frtool.engine import Engine, EngineOptions
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import plan_attention
from frtool.models import hook
from frtool.models.load import LoadedModel
from frtool.models.packed import can_pack, pack_model
from frtool.search.protocols import Expand

VOCAB = 61
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,  # a tied tiny model repeats its last token
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
WINDOW = 5  # shorter than every prompt here
# Per model: its own settings, and the keywords of the attention call that must change the result.
MODELS = {
    "llama": ({}, {"scaling"}),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        {"scaling", "sliding_window"},
    ),
    "qwen3": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ALTERNATING, "head_dim": 16},
        {"scaling", "sliding_window"},
    ),
    "mistral": ({"sliding_window": WINDOW, "head_dim": 16}, {"scaling", "sliding_window"}),
    "gemma2": (
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "layer_types": ALTERNATING,
        },
        {"scaling", "sliding_window", "softcap"},
    ),
    "gemma3_text": (
        {"sliding_window": WINDOW, "head_dim": 16, "query_pre_attn_scalar": 5, "layer_types": ALTERNATING},
        {"scaling", "sliding_window"},
    ),
    "phi3": ({"sliding_window": WINDOW}, {"scaling", "sliding_window"}),
    "smollm3": (
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "no_rope_layers": [1, 1, 0, 1],
        },
        {"scaling", "sliding_window"},
    ),
    "gpt_oss": (
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "layer_types": ALTERNATING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        {"scaling", "sliding_window", "s_aux"},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind: str, device: str = "cpu"):
    """A random model whose attention is sharp enough for every keyword to matter."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(kind, **COMMON | MODELS[kind][0])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=hook.ATTENTION_NAME).eval()
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
            weight.mul_(2.0)
        if name.endswith("sinks"):
            weight.copy_(torch.linspace(-1.0, 2.5, weight.numel()))
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.add_(0.7)
    model.to(device)
    if can_pack(model.device, torch.float32):
        pack_model(model)
    return model


class Pool:
    """Branches of one model in one allocator, with the forward pass that an engine would make."""

    def __init__(self, model, block_size: int = 4, padding: int = 8) -> None:
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.model, self.device, self.padding = model, next(model.parameters()).device, padding
        self.allocator = PhysicalKVAllocator(
            128,
            block_size,
            config.num_key_value_heads,
            head_dim,
            device=self.device,
            num_layers=config.num_hidden_layers,
            dtype=torch.float32,
        )

    def root(self, tokens: list[int]) -> tuple[int, torch.Tensor]:
        branch = self.allocator.alloc_branch(len(tokens)).branch_id
        return branch, self.forward([branch], [tokens])[0]

    def extend(self, branches: list[int], tokens: list[list[int]]) -> list[torch.Tensor]:
        self.allocator.append_many(branches, [len(new) for new in tokens])
        return self.forward(branches, tokens)

    def forward(self, branches: list[int], tokens: list[list[int]]) -> list[torch.Tensor]:
        """Logits [len(new), vocab] of the last tokens of every branch."""
        counts = [len(new) for new in tokens]
        ids, positions, slots = [], [], []
        for branch, new in zip(branches, tokens, strict=True):
            stop = self.allocator.length(branch)
            ids += new
            positions += range(stop - len(new), stop)
            slots += self.allocator.slots(branch, stop - len(new), stop).tolist()
        real = len(ids)
        pad = -real % self.padding
        batch = hook.TreeBatch(
            self.allocator, plan_attention(self.allocator, branches, counts), torch.tensor(slots, device=self.device)
        )
        logits = hook.forward_tree(
            self.model,
            torch.tensor(ids + [0] * pad, device=self.device),
            torch.tensor(positions + [0] * pad, device=self.device),
            batch,
            torch.arange(real, device=self.device),
        )
        assert logits.dtype == torch.float32
        assert logits.shape == (real, VOCAB)
        return list(logits.split(counts))


@torch.no_grad()
def alone(model, path: list[int]) -> torch.Tensor:
    """Logits [len(path), vocab] of one whole path by transformers' own eager attention."""
    model.set_attn_implementation("eager")
    try:
        return model(input_ids=torch.tensor([path], device=model.device), use_cache=False).logits[0].float()
    finally:
        model.set_attn_implementation(hook.ATTENTION_NAME)


def generated(model, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation by transformers' `generate` with its own cache."""
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([prompt], device=model.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        return out[0, len(prompt) :].tolist()
    finally:
        model.set_attn_implementation(hook.ATTENTION_NAME)


def random_tokens(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=generator).tolist()


def grow_tree(model) -> list[tuple[list[int], torch.Tensor]]:
    """Paths and logits of their last tokens, for the nodes of a random tree of three levels."""
    generator = torch.Generator().manual_seed(3)
    pool = Pool(model)
    prompt = random_tokens(generator, 11)
    root, logits = pool.root(prompt)
    nodes = [(prompt, logits)]
    level = [(root, prompt)]
    for width, lengths in ((3, (1, 6, 4)), (2, (2, 1, 9, 3, 5, 1))):
        branches = [pool.allocator.fork(parent).branch_id for parent, _ in level for _ in range(width)]
        paths = [path for _, path in level for _ in range(width)]
        new = [random_tokens(generator, length) for length in lengths]
        results = pool.extend(branches, new)
        level = [(branch, path + step) for branch, path, step in zip(branches, paths, new, strict=True)]
        nodes += [(path, logits) for (_, path), logits in zip(level, results, strict=True)]
    pool.allocator.check()
    assert pool.allocator.stats().physical_tokens < sum(len(path) for path, _ in nodes)
    return nodes


def worst_difference(model) -> float:
    return max(float((alone(model, path)[-len(logits) :] - logits).abs().max()) for path, logits in grow_tree(model))


@pytest.mark.parametrize("kind", MODELS)
def test_every_branch_of_a_tree_has_the_logits_of_its_path_alone(kind):
    assert worst_difference(build(kind)) <= 1e-4


@pytest.mark.parametrize(("kind", "keyword"), [(kind, word) for kind in MODELS for word in sorted(MODELS[kind][1])])
def test_the_fixture_notices_when_a_keyword_is_ignored(kind, keyword, monkeypatch):
    def deaf(module, query, key, value, mask, scaling=None, **kwargs):
        kwargs["scaling"] = scaling
        # No model here has this scale; without any, the default would be right for most of them.
        kwargs[keyword] = 0.1 if keyword == "scaling" else None
        return hook.tree_attention_forward(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, hook.ATTENTION_NAME, deaf)
    assert worst_difference(build(kind)) > 1e-2


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_decoding_through_the_pool_equals_generate(kind):
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    prompts = [random_tokens(generator, length) for length in (6, 13, 9)]
    pool = Pool(model)
    roots = [pool.root(prompt) for prompt in prompts]
    branches = [branch for branch, _ in roots]
    chosen = [[int(logits[-1].argmax())] for _, logits in roots]
    for _ in range(19):
        results = pool.extend(branches, [tokens[-1:] for tokens in chosen])
        for tokens, logits in zip(chosen, results, strict=True):
            tokens.append(int(logits[-1].argmax()))
    assert chosen == [generated(model, prompt, 20) for prompt in prompts]


def engine_error(kind: str, device: str, **options) -> tuple[float, str]:
    """Of the log-probabilities of all steps of a small tree that an engine grew, against each path alone; how the
    engine's passes ran."""
    model = build(kind, device)
    config = model.config
    loaded = LoadedModel(
        model=model,
        tokenizer=Numerals(),
        name=kind,
        source="random",
        dtype=torch.float32,
        device=torch.device(device),
        parameters=1,
        vocab_size=VOCAB,
        max_positions=120,
        position_note=None,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        eos_ids=frozenset(),
        reward_tokens=None,
        chat_template=False,
        is_embedded=False,
    )
    settings = {"batch": 8, "delimiter": "7 ", "max_step_tokens": 9, "num_blocks": 200, "block_size": 4}
    engine = Engine(loaded, list(range(1, 12)), EngineOptions(**settings, **options))
    level, steps = ["0"], {}
    for _ in range(2):
        for parent in level:
            for ordinal in range(3):
                engine.submit(Expand(parent, ordinal))
        level = []
        while engine.outstanding:
            for step in engine.poll():
                name = f"{step.parent}.{step.ordinal}"
                steps[name] = step
                engine.keep(step)
                if step.finish == "step":
                    level.append(name)
    engine.allocator.check()
    assert len(steps) >= 3
    worst = 0.0
    for name, step in steps.items():
        node = engine.holdings.kept[name]
        own, path = len(node.tokens), []
        while node is not None:
            node, path = node.parent, node.tokens + path
        logprobs = torch.log_softmax(alone(model, path), -1)
        total = sum(logprobs[i - 1, path[i]].item() for i in range(len(path) - own, len(path)))
        worst = max(worst, abs(total - step.logprob))
    return worst, engine.forest.mode


@pytest.mark.parametrize("kind", MODELS)
def test_steps_that_grow_in_fixed_buffers_have_the_probabilities_of_their_paths(kind):
    worst, _ = engine_error(kind, "cpu", pipeline=True)
    assert worst <= 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_captured_steps_have_the_probabilities_of_their_paths(kind, compile):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    worst, mode = engine_error(kind, "cuda", compile=compile)
    assert worst <= 1e-2
    if kind == "gpt_oss":  # its experts ask the host which tokens they have
        assert mode.startswith("eager (")
    else:
        assert mode.startswith("captured")
        assert ("compiled" in mode) == compile


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gemma2"])
def test_a_tree_on_the_gpu_has_the_logits_of_its_paths(kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert worst_difference(build(kind, "cuda")) <= 1e-3


def test_only_the_chosen_rows_become_logits():
    model = build("llama")
    pool = Pool(model)
    branch = pool.allocator.alloc_branch(5).branch_id
    batch = hook.TreeBatch(
        pool.allocator, plan_attention(pool.allocator, [branch], [5]), torch.tensor(pool.allocator.slots(branch))
    )
    tokens = torch.tensor([3, 1, 4, 1, 5])
    logits = hook.forward_tree(model, tokens, torch.arange(5), batch, torch.tensor([4, 1]))
    assert torch.allclose(logits, alone(model, tokens.tolist())[[4, 1]], atol=1e-4)


def test_padding_rows_leave_the_pool_alone():
    model = build("llama")
    exact, padded = Pool(model, padding=1), Pool(model, padding=32)
    for pool in (exact, padded):
        pool.root([9, 8, 7, 6, 5])
    assert torch.equal(exact.allocator.k_cache == 0, padded.allocator.k_cache == 0)
    assert torch.allclose(exact.allocator.k_cache, padded.allocator.k_cache, atol=1e-5)
