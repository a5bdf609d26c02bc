"""What a pass makes besides weights and KV: one buffer of logits, and as little as sampling takes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frtool.engine import readout
from frtool.engine.fixed_step import Outbox
from frtool.engine.options import EngineOptions
from frtool.engine.readout import READINGS, Readout
from frtool.models.load import LoadedModel
from frtool.models.output_matrix import OutputMatrix

Drive = Callable[..., Any]
Model = Callable[..., LoadedModel]

VOCAB, ROWS = 20_000, 64
LOGITS = VOCAB * ROWS * 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made within it, as long as they live. `there`: what there is already, which shows up
    in views of it."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


@pytest.fixture(scope="module")
def wide(loaded_model: Model) -> LoadedModel:
    """Its logits are larger than all else that a pass makes; it names no end, for nothing may be drawn apart."""
    return loaded_model(vocab_size=VOCAB, pack=False)  # as on a GPU


def fill(driver: Any) -> None:
    """Two passes of as many steps as there are rows."""
    driver.submit("0", *range(ROWS))
    driver.poll()
    driver.poll()


def test_a_pass_of_many_rows_makes_its_logits_once(
    wide: LoadedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "_MOST_ENTRIES", 4 * VOCAB)
    driver = drive(wide, delimiter="\0", batch=ROWS, num_blocks=400, pipeline=True)
    with LiveBytes([*wide.model.parameters(), *wide.model.buffers(), driver.engine.allocator.kv_cache]) as live:
        fill(driver)
    assert LOGITS < live.peak < 1.5 * LOGITS  # sampling works on 4 of 64 rows


def test_logits_of_all_passes_and_of_first_tokens_share_one_buffer(
    wide: LoadedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    read = Readout.__call__

    def noted(self: Readout, logits: torch.Tensor, *rest: torch.Tensor) -> None:
        seen.append(logits.data_ptr())
        read(self, logits, *rest)

    monkeypatch.setattr(Readout, "__call__", noted)
    driver = drive(wide, delimiter="\0", batch=ROWS, num_blocks=400, pipeline=True, max_step_tokens=4)
    driver.submit("0", *range(ROWS, ROWS + 3))
    driver.finish(keep=False)
    fill(driver)
    assert len(driver.engine.forest.passes._steps) > 1
    assert len(seen) > 6
    assert len(set(seen)) == 1


def test_working_memory_of_sampling_never_moves(
    wide: LoadedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that was recorded with it may be replayed after any other."""
    monkeypatch.setattr(readout, "_MOST_ENTRIES", 16 * VOCAB)
    driver = drive(wide, delimiter="\0", batch=ROWS, num_blocks=400, pipeline=True, max_step_tokens=4, top_p=0.9)
    driver.submit("0", 0)
    driver.finish(keep=False)
    scratch = driver.engine.forest.passes._readout._sampler._scratch
    before = [(room.data_ptr(), tuple(room.shape)) for room in scratch]
    assert before[0][1] == (16, VOCAB)
    driver.submit("0", *range(1, ROWS))
    driver.finish(keep=False)
    assert [(room.data_ptr(), tuple(room.shape)) for room in scratch] == before


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"greedy": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_read_in_parts_are_read_to_the_same_bits(
    loaded_model: Model, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab, rows = 3001, 13
    loaded = loaded_model(vocab_size=vocab)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, vocab, generator=generator)).to(dtype)
    noise = torch.rand(rows, generator=generator).clamp(1e-4, 1 - 1e-4)
    noise[4], noise[9] = -1.0, -2.0 - 37
    found = []
    for most in (rows, 4, 1):
        monkeypatch.setattr(readout, "_MOST_ENTRIES", most * vocab)
        values, tokens = torch.full((READINGS, rows), torch.nan), torch.full((rows,), -1)
        Readout(loaded, EngineOptions(**options), rows)(logits, noise, values, tokens)
        found.append((values, tokens))
    for values, tokens in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(tokens, found[0][1])


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}], ids=str)
def test_a_search_that_reads_in_parts_grows_the_same_steps(
    tiny: LoadedModel, drive: Drive, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = []
    for most in (1 << 23, 3 * tiny.vocab_size):
        monkeypatch.setattr(readout, "_MOST_ENTRIES", most)
        driver = drive(tiny, delimiter="e", read_rewards=True, batch=16, pipeline=True, **options)
        grown.append(driver.grow(width=5, depth=2))
    assert len(grown[0]) > 10
    assert grown[0] == grown[1]


class Head(torch.nn.Module):
    """An output matrix and what a model makes of its product."""

    def __init__(self, head: torch.nn.Linear, then: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.head, self.then = head, then

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self.head(x))


def make_outbox(model: torch.nn.Module, rows: int = 8) -> Outbox:
    return Outbox(SimpleNamespace(model=model, device=torch.device("cpu")), rows)  # type: ignore[arg-type]


def linear(dtype: torch.dtype = torch.float32, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(40, 61, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_output_matrix_writes_the_same_bits_into_the_buffer(dtype: torch.dtype) -> None:
    model = Head(linear(dtype))
    outbox = make_outbox(model)
    for rows in (8, 3, 1):
        x = torch.randn(1, rows, 40).to(dtype)
        with outbox.matrix.into(outbox.room):
            made = model(x)
        held = outbox.hold(made[0])
        assert held.data_ptr() == made.data_ptr() == outbox.logits.data_ptr()
        assert torch.equal(made, model(x))


@pytest.mark.parametrize(
    "then",
    [lambda x: 30 * torch.tanh(x / 30), lambda x: x.float(), lambda x: x[..., :50], lambda x: x.mul_(2)],
    ids=["capped", "float32", "cut", "in place"],
)
@torch.inference_mode()
def test_what_a_model_makes_of_the_product_stays_right(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Head(linear(torch.bfloat16), then)
    outbox = make_outbox(model)
    places = set()
    for rows in (2, 8, 5):
        x = torch.randn(1, rows, 40).bfloat16()
        with outbox.matrix.into(outbox.room):
            held = outbox.hold(model(x)[0])
        assert torch.equal(held, model(x)[0])
        places.add(held.data_ptr())
    assert len(places) == 1


@torch.inference_mode()
def test_only_the_first_product_of_a_pass_goes_into_the_buffer() -> None:
    model = Head(linear())
    outbox = make_outbox(model)
    first, second = torch.randn(2, 1, 4, 40)
    with outbox.matrix.into(outbox.room):
        made, other = model(first), model(second)
    assert torch.equal(made, model(first))
    assert torch.equal(other, model(second))


@torch.inference_mode()
def test_another_thread_may_run_the_model_meanwhile() -> None:
    model = Head(linear())
    outbox = make_outbox(model)
    x, y = torch.randn(2, 1, 4, 40)
    seen: list[torch.Tensor] = []
    with outbox.matrix.into(outbox.room):
        thread = threading.Thread(target=lambda: seen.append(model(y)))
        thread.start()
        thread.join()
        made = model(x)
    assert made.data_ptr() == outbox.logits.data_ptr()
    assert torch.equal(seen[0], model(y))


def test_a_layer_that_is_not_plain_stays_as_it_is() -> None:
    hooked = linear()
    hooked.forward = torch.nn.Linear.forward.__get__(hooked)  # type: ignore[method-assign]
    for model in (Head(linear(bias=True)), Head(hooked), torch.nn.Linear(3, 3)):
        before = dict(vars(model.head)) if isinstance(model, Head) else {}
        with OutputMatrix(model).into(lambda *_: pytest.fail("asked for room")):
            if isinstance(model, Head):
                model(torch.randn(1, 2, 40))
        assert not isinstance(model, Head) or vars(model.head) == before


def test_a_pass_that_fails_leaves_the_layer_as_it_was() -> None:
    model = Head(linear())
    outbox = make_outbox(model)
    with pytest.raises(RuntimeError), outbox.matrix.into(outbox.room):
        model(torch.randn(1, 2, 41))
    assert "forward" not in vars(model.head)
    with outbox.matrix.into(outbox.room):
        pass
    assert model(torch.randn(1, 2, 40)).data_ptr() != outbox.logits.data_ptr()


@torch.inference_mode()
def test_logits_of_kept_nodes_of_another_kind_leave_the_buffer_alone() -> None:
    outbox = make_outbox(Head(linear()))
    held = outbox.hold(torch.randn(3, 61))
    place, rows = held.data_ptr(), [torch.randn(61).bfloat16() for _ in range(4)]
    assert torch.equal(outbox.gather(rows), torch.stack(rows))
    assert torch.equal(outbox.gather([rows[0].float(), rows[1]]), torch.stack([rows[0].float(), rows[1]]))
    assert outbox.gather([row.float() for row in rows]).data_ptr() == place == outbox.logits.data_ptr()
