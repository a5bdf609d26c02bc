"""Packed weights compute what the model computed before, and every row by itself."""

from __future__ import annotations

import pytest
import torch
import transformers

from frtool.models import packed, row_layout

COMMON = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
# What a kind adds, and how many products of the two layers and of the output are packed: 5 a layer in whole layers.
MODELS = {
    "llama": ({"attention_bias": True, "tie_word_embeddings": True}, 11),
    "mistral": ({"sliding_window": 5}, 11),
    "qwen2": ({"head_dim": None}, 11),
    "qwen3": ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, 11),
    "gemma2": ({"sliding_window": 5, "query_pre_attn_scalar": 5}, 15),
}

pytestmark = pytest.mark.skipif(
    not packed.can_pack(torch.device("cpu"), torch.float32), reason="this torch packs no weights"
)


def build(kind: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(3)
    settings = {name: value for name, value in (COMMON | MODELS[kind][0]).items() if value is not None}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **settings), attn_implementation="eager", dtype=dtype
    )
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, 0.5, 0.5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_model_gives_the_logits_it_gave_before(kind):
    model = build(kind)
    ids = torch.randint(0, 61, (2, 19))
    before = model(ids, use_cache=False).logits
    assert packed.pack_model(model) == MODELS[kind][1]
    after = model(ids, use_cache=False).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_packed_model_keeps_working_with_the_cache_of_transformers():
    model = build("llama")
    packed.pack_model(model)
    ids = torch.randint(0, 61, (1, 12))
    whole = model(ids, use_cache=False).logits
    begun = model(ids[:, :7], use_cache=True)
    rest = model(ids[:, 7:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 7:], rtol=1e-4, atol=1e-4)


def test_packed_weights_replace_those_of_the_model():
    model = build("llama")
    embedding = model.model.embed_tokens.weight
    packed.pack_model(model)
    left = dict(model.named_parameters())
    assert all(weight.dim() == 1 or weight is embedding for weight in left.values())


def test_a_tied_output_matrix_is_copied_only_where_memory_is_free(monkeypatch):
    monkeypatch.setattr(packed, "free_host_memory", lambda: 1000)
    model = build("llama")
    assert packed.pack_model(model) == MODELS["llama"][1] - 1
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_of_a_layer_depends_on_the_others(dtype):
    if not packed.can_pack(torch.device("cpu"), dtype):
        pytest.skip("this torch packs no such weights")
    model = build("llama", dtype)
    packed.pack_model(model)
    layer = model.model.layers[0]
    x = torch.randn(96, 40).to(dtype)
    out = torch.randn(96, 64).to(dtype)
    gate = torch.randn(96, 72).to(dtype)
    products = {
        "with an activation": lambda rows: layer.gate(x[rows]),
        "added": lambda rows: layer.out.add_to(x[rows], out[rows]),
        "multiplied": lambda rows: layer.up.times(gate[rows], x[rows]),
        "several at once": lambda rows: layer.qkv(x[rows]),
    }
    least = packed.least_rows(torch.device("cpu"), dtype)
    for name, product in products.items():
        whole = product(slice(None))
        for rows in (slice(0, least), slice(3, 3 + 2 * least), slice(5, 5 + 9 * least), slice(0, 96)):
            assert torch.equal(product(rows), whole[rows]), name


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_pass_over_a_tree_gives_what_the_interface_of_transformers_gives(kind, monkeypatch):
    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.kernels.attention import plan_attention
    from frtool.models import packed_layers, tree_pass
    from frtool.models.hook import ATTENTION_NAME

    def run() -> torch.Tensor:
        allocator = PhysicalKVAllocator(32, 4, 2, 16, num_layers=2)
        branch = allocator.alloc_branch(13).branch_id
        slots = torch.from_numpy(allocator.slots(branch))
        batch = tree_pass.TreeBatch(allocator, plan_attention(allocator, [branch], [13]), slots)
        ids = torch.arange(16)  # three rows are padding
        return tree_pass.forward_tree(model, ids, ids, batch, torch.arange(13))

    model = build(kind)
    model.set_attn_implementation(ATTENTION_NAME)
    packed.pack_model(model)
    direct = run()
    monkeypatch.delattr(model, "tree_logits")
    assert torch.equal(run(), direct), "what transformers does around the layers plays a part"
    monkeypatch.setattr(packed_layers, "tree_attention_forward", None)
    torch.testing.assert_close(direct, run(), rtol=1e-5, atol=1e-5)


def test_where_packing_computes_something_else_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(packed, "_results", {})
    monkeypatch.setattr(packed, "pack", lambda weight, layout: row_layout.pack(weight.flip(0), layout))
    assert not packed.can_pack(torch.device("cpu"), torch.float32)


def test_where_torch_lacks_the_operator_nothing_is_packed(monkeypatch):
    def absent(weight: torch.Tensor, layout: row_layout.RowLayout) -> torch.Tensor:
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(packed, "_results", {})
    monkeypatch.setattr(packed, "pack", absent)
    assert not packed.can_pack(torch.device("cpu"), torch.float32)
    assert not packed.can_pack(torch.device("cpu"), torch.float16)


@pytest.mark.parametrize("rows", [1, 8, 9, 17, 40])
def test_a_product_of_more_rows_than_agree_is_computed_in_pieces(rows):
    linear = torch.nn.Linear(40, 24)
    whole = packed.PackedLinear(linear, layout=row_layout.RowLayout())
    pieces = packed.PackedLinear(linear, layout=row_layout.RowLayout(None, 8))
    x, term = torch.randn(2, rows, 40), torch.randn(2, rows, 24)
    products = {
        "plain": lambda layer: layer(x),
        "added": lambda layer: layer.add_to(term, x),
        "multiplied": lambda layer: layer.times(term, x),
    }
    for name, product in products.items():
        assert product(pieces).shape == (2, rows, 24), name
        torch.testing.assert_close(product(pieces), product(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "length"), [(96, 64), (40, 4864)])
def test_no_row_of_a_product_depends_on_the_others_in_the_layout_of_its_shape(dtype, width, length):
    if not packed.can_pack(torch.device("cpu"), dtype):
        pytest.skip("this torch packs no such weights")
    torch.manual_seed(0)
    least = packed.least_rows(torch.device("cpu"), dtype)
    layer = packed.PackedLinear(torch.nn.Linear(length, width, bias=False, dtype=dtype))
    x, term = torch.randn(304, length).to(dtype), torch.randn(304, width).to(dtype)
    for product in (lambda rows: layer(x[rows]), lambda rows: layer.add_to(term[rows], x[rows])):
        whole = product(slice(None))
        for count in (1, 2, 5, 8, 9, 16, 17, 32, 33, 38):
            rows = slice(3, 3 + count * least)
            assert torch.equal(product(rows), whole[rows]), count


def test_where_rows_depend_on_their_number_a_layout_is_tried_for_each_shape(monkeypatch):
    """As on processors with AMX: beyond 32 rows a product rounds in another way, beyond 8 in one layout."""
    packs: list[row_layout.RowLayout] = []

    def pack(weight: torch.Tensor, layout: row_layout.RowLayout):
        packs.append(layout)
        return weight, layout

    def products(of):
        _, layout = of
        limit = {1: 8}.get(layout.packed_for, 32)
        return [lambda x, term: x[:, :3] * (1 + (len(x) > limit))]

    monkeypatch.setattr(row_layout, "_results", {})
    monkeypatch.setattr(row_layout, "pack", pack)
    monkeypatch.setattr(row_layout, "_products", products)
    weight = torch.arange(12.0).view(3, 4)
    assert row_layout.layout_of(weight, 4) == row_layout.RowLayout(None, 32)
    tried = len(packs)
    assert row_layout.layout_of(weight + 1, 4) == row_layout.RowLayout(None, 32)
    assert len(packs) == tried, "once for a shape"
    monkeypatch.setattr(row_layout, "_products", lambda of: [lambda x, term: x[:, :3] * len(x)])
    assert row_layout.layout_of(torch.ones(3, 5), 4) == row_layout.RowLayout(None, 4), "pieces of one size always agree"
