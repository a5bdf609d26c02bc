"""Weights in fp16 under fp32: products of the very weights, every row by itself, and only where they are held."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.engine.pace import _agree
from frtool.models import half_linear, packed
from frtool.models.apart import ApartLinear, bytes_saved
from frtool.models.half_linear import HalfLinear, half_rows, is_held, linear_for
from frtool.models.load import load_model
from frtool.models.packed import SILU, PackedLinear

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not (packed.can_pack(CPU, torch.float32) and half_rows()), reason="this torch has no products with weights in fp16"
)


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch):
    monkeypatch.setattr(half_linear, "is_fast", lambda: True)


def layer(inputs: int, outputs: int, bias: bool = False, seed: int = 0) -> torch.nn.Linear:
    """Weights as of a checkpoint in bf16."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(inputs, outputs, bias=bias)
    torch.nn.init.normal_(linear.weight, 0, 0.2)
    return linear.bfloat16().float().requires_grad_(False)


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (96, 200), (1100, 40)])
def test_a_product_is_that_of_the_weights_in_fp32(inputs, outputs):
    linear = layer(inputs, outputs, bias=True)
    half = HalfLinear(linear)
    x, term = torch.randn(3, 7, inputs), torch.randn(3, 7, outputs)
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    near = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(half(x).double(), exact, **near)
    torch.testing.assert_close(half.add_to(term, x).double(), exact + term.double(), **near)
    torch.testing.assert_close(half.times(term, x).double(), exact * term.double(), rtol=1e-5, atol=1e-4)
    active = HalfLinear(linear, then=SILU)(x)
    torch.testing.assert_close(active.double(), torch.nn.functional.silu(exact), **near)


def test_several_layers_become_one_in_the_order_asked_for():
    first, second = layer(64, 30, bias=True), layer(64, 17, seed=1)
    order = torch.randperm(47)
    x = torch.randn(6, 64)
    apart = torch.cat((HalfLinear(first)(x), HalfLinear(second)(x)), -1)
    torch.testing.assert_close(HalfLinear(first, second, order=order)(x), apart[:, order])


@given(data=st.data())
@settings(deadline=None)
def test_a_row_has_the_same_bits_in_any_company(data):
    inputs = data.draw(st.sampled_from([64, 513, 1040]))
    half = HalfLinear(layer(inputs, 1060, bias=True), then=SILU)
    multiple = half_rows()
    x = torch.randn(60 * multiple, inputs, generator=torch.Generator().manual_seed(1))
    whole = half(x)
    rows = multiple * data.draw(st.integers(1, 59))
    begin = data.draw(st.integers(0, len(x) - rows))
    assert torch.equal(half(x[begin : begin + rows].clone()), whole[begin : begin + rows])


def test_rows_may_lie_apart_and_threads_may_change():
    half = HalfLinear(layer(64, 48))
    x = torch.randn(9, 70)
    assert torch.equal(half(x[:, :64]), half(x[:, :64].clone()))
    assert isinstance(_agree(2, torch.float32, 64, frozenset([HalfLinear])), bool)


def test_fp16_holds_what_bf16_holds_but_for_the_largest():
    weight = torch.randn(500, 90).bfloat16().float() * 2.0 ** torch.arange(-30, 15).repeat(2)
    assert is_held(weight)
    assert not is_held(weight + 1e-3)
    assert is_held(weight + 1e-3, rounds=True)
    for large in (7e4, -1e6, float("inf"), float("nan")):
        weight[3, 4] = large
        assert not is_held(weight)
        assert not is_held(weight, rounds=True)


def model_of(**changes):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.2, pad_token_id=None, **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def kinds(model) -> list[type]:
    return [type(module) for module in model.modules() if isinstance(module, PackedLinear | ApartLinear)]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_a_checkpoint_in_bf16_is_packed_in_fp16_and_gives_the_same_logits(tied):
    model = model_of(tie_word_embeddings=tied).bfloat16().float()
    ids = torch.randint(0, 61, (2, 9))
    before = model(ids).logits
    assert packed.pack_model(model) == 11
    assert kinds(model) == [HalfLinear] * 11
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)
    weights = 2 * (40 * 128 + 64 * 40 + 3 * 40 * 72) + 61 * 40
    assert bytes_saved(model, 4) == 2 * weights


def test_weights_that_need_more_bits_keep_them_unless_they_come_out_of_fewer():
    model = model_of()
    packed.pack_model(model)
    assert kinds(model) == [PackedLinear] * 11
    model = model_of()
    packed.pack_model(model, rounds=True)
    assert kinds(model) == [HalfLinear] * 11
    assert linear_for([torch.ones(2, 2), torch.ones(2, 2).bfloat16()], rounds=True) is PackedLinear


def test_beside_four_bits_the_output_matrix_is_in_fp16():
    model = model_of(tie_word_embeddings=True).bfloat16().float()
    packed.pack_model(model, four_bit=True)
    hidden = torch.randn(1, 1, 40)
    alone = model.lm_head(hidden)
    assert isinstance(model.lm_head.layer, HalfLinear)
    assert torch.equal(model.lm_head(hidden.repeat(1, 8, 1)), alone.repeat(1, 8, 1))


def test_a_pass_has_the_rows_that_all_of_its_products_need(monkeypatch):
    def rows(model) -> int:
        return packed.row_multiple(SimpleNamespace(model=model, four_bit=False, device=CPU, dtype=torch.float32))

    plain = packed.least_rows(CPU, torch.float32)
    model = model_of().bfloat16().float()
    packed.pack_model(model)
    assert rows(model) == half_rows()
    monkeypatch.setattr(packed, "free_host_memory", lambda: 1000)
    model = model_of(tie_word_embeddings=True).bfloat16().float()
    packed.pack_model(model)
    assert type(model.lm_head) is torch.nn.Linear
    assert rows(model) % half_rows() == rows(model) % plain == 0


def test_where_such_products_were_not_measured_weights_stay_in_fp32(monkeypatch):
    monkeypatch.undo()
    for capability, kind in (("AVX2", HalfLinear), ("AVX512", PackedLinear), ("DEFAULT", PackedLinear)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert linear_for([torch.ones(4, 4)]) is kind


@pytest.mark.parametrize("fault", [AttributeError("linear_prepack_fp16"), RuntimeError("no FBGEMM"), None])
def test_where_torch_has_no_such_products_or_wrong_ones_weights_stay_in_fp32(monkeypatch, fault):
    def broken(weight):
        if fault is not None:
            raise fault
        return lambda rows: rows @ weight.T * 1.01

    monkeypatch.setattr(half_linear, "_product_with", broken)
    half_rows.cache_clear()
    try:
        assert half_rows() == 0
        assert linear_for([torch.ones(4, 4)]) is PackedLinear
    finally:
        half_rows.cache_clear()


def test_where_rows_depend_on_each_other_weights_stay_in_fp32(monkeypatch):
    def entangled(weight):
        return lambda rows: rows @ weight.half().float().T + 1e-7 * len(rows)

    monkeypatch.setattr(half_linear, "_product_with", entangled)
    half_rows.cache_clear()
    try:
        assert half_rows() == 0
    finally:
        half_rows.cache_clear()


def test_a_q4_1_file_in_fp16_is_as_good_as_in_fp32(monkeypatch, smollm2_file):
    logits = []
    for fast, kind in ((False, PackedLinear), (True, HalfLinear)):
        monkeypatch.setattr(half_linear, "is_fast", lambda fast=fast: fast)
        loaded = load_model(smollm2_file, device="cpu", dtype="float32")
        assert set(kinds(loaded.model)) == {kind}
        loaded.model.set_attn_implementation("eager")
        ids = loaded.tokenizer("Water boils at 100 degrees. The capital of France is", return_tensors="pt").input_ids
        logits.append(loaded.model(ids).logits.double())
    exact, half = logits
    assert (half - exact).norm() < 2e-3 * exact.norm()
