"""Weights of four bits: the codes of a Q4_1 file, products of the rounded weights, and every row by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.cli import main
from frtool.engine.pace import _agree
from frtool.errors import UsageError
from frtool.models import packed
from frtool.models.apart import bytes_saved
from frtool.models.devices import take_four_bits
from frtool.models.four_bit import GROUP, FilledUp, FourBitLinear, can_compute, four_bits
from frtool.models.load import load_model
from frtool.models.packed import SILU, PackedLinear

pytestmark = pytest.mark.skipif(
    not (packed.can_pack(torch.device("cpu"), torch.float32) and can_compute(torch.float32)),
    reason="this torch does not compute with four-bit weights",
)
DTYPES = [d for d in (torch.float32, torch.bfloat16) if packed.can_pack(torch.device("cpu"), d) and can_compute(d)]


def layer(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = False, seed: int = 0):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    torch.nn.init.normal_(linear.weight, 0, 0.2)
    return linear.requires_grad_(False)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """float64 `[out, in]`: what `weight` is with four bits, by the formula."""
    codes, scales = four_bits(weight)
    scale, zero = scales.double().transpose(0, 1).unbind(-1)
    groups = codes.double().view(len(weight), -1, GROUP)
    return ((groups - 8) * scale.unsqueeze(-1) + zero.unsqueeze(-1)).view(weight.shape)


@given(st.integers(0, 2**32), st.floats(1e-4, 10), st.floats(-5, 5))
def test_weights_of_a_q4_1_block_keep_their_codes(seed, step, least):
    """A block of such a file is d * code + m in fp16, with codes 0 and 15 among them; models hold it in bf16."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (4, 2 * GROUP), generator=generator)
    codes[:, ::GROUP], codes[:, 1::GROUP] = 0, 15
    d, m = torch.tensor(step).half().float(), torch.tensor(least * step * 15).half().float()
    found, _ = four_bits((d * codes + m).bfloat16() if abs(least) < 1 else d * codes + m)
    assert torch.equal(found, codes.int())


def test_rounding_is_to_the_nearest_of_sixteen_values():
    weight = layer(96, 32).weight
    codes, scales = four_bits(weight)
    assert codes.min() == 0
    assert codes.max() == 15
    step = scales[..., 0].T.repeat_interleave(GROUP, 1)
    assert ((rounded(weight) - weight).abs() <= 0.51 * step + 0.01 * weight.abs().max()).all()


@pytest.mark.parametrize("value", [0.0, 0.375, -0.01, 3e-5, 300.0])
def test_equal_weights_are_their_zero(value):
    weight = torch.full((16, GROUP), value)
    assert torch.equal(rounded(weight), weight.bfloat16().double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 16), (96, 208), (576, 48)])
def test_a_product_is_that_of_the_rounded_weights(dtype, inputs, outputs):
    linear = layer(inputs, outputs, dtype, bias=True)
    four = FourBitLinear(linear)
    x, term = torch.randn(3, 5, inputs).to(dtype), torch.randn(3, 5, outputs).to(dtype)
    exact = x.bfloat16().double() @ rounded(linear.weight).T + linear.bias.double()
    near = {"rtol": 4e-3, "atol": 1e-2} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 4e-2}
    torch.testing.assert_close(four(x).double(), exact, **near)
    torch.testing.assert_close(four.add_to(term, x).double(), exact + term.double(), **near)
    torch.testing.assert_close(four.times(term, x).double(), exact * term.double(), **near)
    active = FourBitLinear(linear, then=SILU)(x)
    torch.testing.assert_close(active.double(), torch.nn.functional.silu(exact), **near)


def test_several_layers_become_one_in_the_order_asked_for():
    first, second = layer(64, 32, bias=True), layer(64, 16, seed=1)
    order = torch.randperm(48)
    both = FourBitLinear(first, second, order=order)
    x = torch.randn(4, 64)
    apart = torch.cat((FourBitLinear(first)(x), FourBitLinear(second)(x)), -1)
    assert both.widths == [32, 16]
    torch.testing.assert_close(both(x), apart[:, order])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(deadline=None)
def test_a_row_has_the_same_bits_in_any_company(dtype, data):
    outputs = data.draw(st.sampled_from([1040, 1056]))
    four = FourBitLinear(layer(64, outputs, dtype, bias=True), then=SILU)
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = four(x)
    begin = data.draw(st.integers(0, 99))
    end = data.draw(st.integers(begin + 1, 100))
    assert torch.equal(four(x[begin:end].clone()), whole[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_and_threads_may_change(dtype):
    four = FourBitLinear(layer(64, 48, dtype))
    x = torch.randn(9, 70).to(dtype)
    assert torch.equal(four(x[:, :64]), four(x[:, :64].clone()))
    assert isinstance(_agree(2, dtype, 64, frozenset([FourBitLinear])), bool)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_a_layer_that_needs_several_rows_is_filled_up(rows):
    asked = []

    class Layer(torch.nn.Module):
        def forward(self, x):
            asked.append(x.shape)
            return 2 * x

    x = torch.randn(1, rows, 5)
    assert torch.equal(FilledUp(Layer(), 4)(x), 2 * x)
    assert asked == [(1, -(-rows // 4) * 4, 5)]


def model_of(hidden: int, **changes):
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=hidden, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.2, pad_token_id=None, **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("tied", [False, True])
def test_all_but_the_output_matrix_gets_four_bits(tied):
    model = model_of(64, tie_word_embeddings=tied)
    exact = model_of(64, tie_word_embeddings=tied)
    for module in exact.modules():
        if isinstance(module, torch.nn.Linear) and module is not exact.lm_head:
            module.weight.copy_(rounded(module.weight))
            module.register_forward_pre_hook(lambda _, args: args[0].bfloat16().float())
            module.register_forward_hook(lambda _, args, out: out.bfloat16().float())
    ids = torch.randint(0, 61, (2, 9))
    assert packed.pack_model(model, four_bit=True) == 11
    kinds = [type(module) for module in model.modules() if isinstance(module, FourBitLinear | PackedLinear)]
    assert kinds.count(FourBitLinear) == 10
    assert kinds.count(PackedLinear) == 1
    expected = exact(ids).logits
    assert (model(ids).logits - expected).norm() < 2e-3 * expected.norm()
    weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 96)
    assert bytes_saved(model, 4) == weights * 4 - weights * 5 // 8, "half a byte, and two bf16 a group"


def test_layers_that_do_not_fit_keep_all_their_bits():
    assert FourBitLinear.fits(layer(64, 48))
    assert not FourBitLinear.fits(layer(40, 64))
    assert not FourBitLinear.fits(layer(64, 40))
    model = model_of(40)
    before = model(torch.arange(9)[None]).logits
    packed.pack_model(model, four_bit=True)
    assert not hasattr(model, "tree_logits"), "rows of a pass are then a multiple of those that a product needs"
    assert (model(torch.arange(9)[None]).logits - before).norm() / before.norm() < 0.3


def test_a_pass_has_no_rows_to_fill_up_where_every_product_takes_care_of_itself():
    model = model_of(64)
    packed.pack_model(model, four_bit=True)
    loaded = SimpleNamespace(model=model, four_bit=True, device=torch.device("cpu"), dtype=torch.float32)
    assert packed.row_multiple(loaded) == 1
    loaded.four_bit = False
    assert packed.row_multiple(loaded) == packed.least_rows(loaded.device, loaded.dtype) > 1


def test_four_bits_are_for_a_cpu_and_not_for_the_embedded_model(capsys):
    with pytest.raises(UsageError, match="on a CPU only"):
        take_four_bits("int4", torch.device("cuda"))
    with pytest.raises(SystemExit) as end:
        main(["search", "Make 24 from 4, 5, 6, 10", "--dtype", "int4", "--quiet"])
    assert end.value.code == 2
    assert "the embedded model is not offered in int4" in capsys.readouterr().err


def test_a_q4_1_file_is_as_near_to_itself_in_int4_as_in_bf16(smollm2_file):
    logits = {}
    for name in ("float32", "bfloat16", "int4"):
        loaded = load_model(smollm2_file, device="cpu", dtype=name)
        assert loaded.number_format == name
        loaded.model.set_attn_implementation("eager")
        ids = loaded.tokenizer("Water boils at 100 degrees. The capital of France is", return_tensors="pt").input_ids
        logits[name] = loaded.model(ids).logits.double()
    exact = logits["float32"]
    errors = {name: float((values - exact).norm() / exact.norm()) for name, values in logits.items()}
    assert errors["int4"] < 1.5 * errors["bfloat16"] < 0.1
