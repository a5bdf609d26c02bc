"""Batches of documents, made on the fly by worker processes and handed over in shared memory.

Batch number i depends on the seed and i alone, whichever worker makes it. The generator is seeded with a hash of the
two: seeds that are spaced by a constant can give shifted copies of one stream.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import jit
from .first_moves import put_first_moves
from .trees import MAX_DOCUMENT_SIZE, WIDTH, Documents, Workspace, new_documents, new_workspace, put, put_document

BLOCK = 128
"""Tokens in a block of the attention mask."""


class Batch(NamedTuple):
    """Documents in one sequence of N tokens, and which blocks of the attention mask can be visible.

    `first_key_block` [N/BLOCK] int32: the lowest block that a query block sees. `last_query_block` [N/BLOCK] int32:
    the highest block that sees a key block. All blocks between are seen in part.
    """

    documents: Documents
    first_key_block: NDArray[Any]
    last_query_block: NDArray[Any]


_FIELDS: tuple[tuple[str, type, tuple[int, ...]], ...] = (
    ("tokens", np.uint8, ()),
    ("positions", np.int16, ()),
    ("ends", np.int32, ()),
    ("targets", np.uint8, (WIDTH,)),
    ("weights", np.uint8, ()),
    ("tags", np.uint8, ()),
)


def batch_bytes(size: int) -> int:
    per_token = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for _, kind, shape in _FIELDS)
    return size * per_token + 2 * 4 * (size // BLOCK) + 64 * (len(_FIELDS) + 2)


def batch_over(buffer: Any, size: int) -> Batch:
    """A batch of `size` tokens laid over a buffer of `batch_bytes(size)`."""
    offset = 0

    def take(kind: type, shape: tuple[int, ...]) -> NDArray[Any]:
        nonlocal offset
        array: NDArray[Any] = np.frombuffer(buffer, kind, int(np.prod(shape)), offset).reshape(shape)
        offset += -(-array.nbytes // 64) * 64
        return array

    documents = Documents(*(take(kind, (size, *shape)) for _, kind, shape in _FIELDS))
    return Batch(documents, take(np.int32, (size // BLOCK,)), take(np.int32, (size // BLOCK,)))


def batch_seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "little")


@jit
def _seed(value: int) -> None:
    np.random.seed(value)


@jit
def _copy(source: Documents, count: int, target: Documents, at: int) -> None:
    for k in range(count):
        target.tokens[at + k] = source.tokens[k]
        target.positions[at + k] = source.positions[k]
        target.ends[at + k] = source.ends[k] + at
        target.targets[at + k] = source.targets[k]
        target.weights[at + k] = source.weights[k]
        target.tags[at + k] = source.tags[k]


@jit
def _fill(
    documents: Documents,
    size: int,
    first_key_block: NDArray[Any],
    last_query_block: NDArray[Any],
    scratch: Documents,
    work: Workspace,
    first_moves: float,
    validation: bool,
) -> int:
    for b in range(size // BLOCK):
        first_key_block[b] = b
        last_query_block[b] = b
    at = 0
    short = 0
    count = 0
    while True:
        if short < first_moves * at:
            length = put_first_moves(scratch, work, 0)
            short += length
        else:
            length = put_document(scratch, work, 0, validation)
        if at + length > size:
            break
        _copy(scratch, length, documents, at)
        for b in range(at // BLOCK, (at + length - 1) // BLOCK + 1):
            first_key_block[b] = min(first_key_block[b], at // BLOCK)
            last_query_block[b] = max(last_query_block[b], (at + length - 1) // BLOCK)
        at += length
        count += 1
    while at < size:
        at = put(documents, at, 0, 0)
    return count


def empty_batch(size: int) -> Batch:
    """Padding only: of the right shapes, and worth no loss."""
    batch = batch_over(bytearray(batch_bytes(size)), size)
    batch.documents.ends[:] = np.arange(1, size + 1)
    batch.first_key_block[:] = batch.last_query_block[:] = np.arange(size // BLOCK)
    return batch


def fill(
    batch: Batch, seed: int, scratch: Documents, work: Workspace, first_moves: float = 0.0, validation: bool = False
) -> int:
    """Write batch `seed` in place: whole documents, then padding. Returns the number of documents.

    `first_moves`: share of the tokens in documents that show first moves alone. Validation has trees only.
    """
    _seed(seed)
    documents, blocks = batch.documents, (batch.first_key_block, batch.last_query_block)
    share = 0.0 if validation else first_moves
    return _fill(documents, len(documents.tokens), *blocks, scratch, work, share, validation)


def make_batch(size: int, seed: int, first_moves: float = 0.0, validation: bool = False) -> tuple[Batch, int]:
    """One batch in memory of its own, and its number of documents."""
    batch = batch_over(bytearray(batch_bytes(size)), size)
    return batch, fill(batch, seed, new_documents(MAX_DOCUMENT_SIZE), new_workspace(), first_moves, validation)


class BatchStream:
    """Training batches from `workers` processes through `slots` shared buffers.

    Start it before CUDA: workers are forked. Batches come in the order in which they get done. Of `world` streams of
    one seed, this is number `rank`: together they make every batch once. `first_moves` as in `fill`.
    """

    def __init__(
        self, size: int, seed: int, workers: int, slots: int, first_moves: float = 0.0, rank: int = 0, world: int = 1
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._size = size
        self._first_moves = first_moves
        self._buffers = [mmap.mmap(-1, batch_bytes(size)) for _ in range(slots)]
        self._free: Any = context.Queue()
        self._full: Any = context.Queue()
        for slot in range(slots):
            self._free.put(slot)
        self._workers = [
            context.Process(target=self._work, args=(seed, rank * workers + worker, world * workers), daemon=True)
            for worker in range(workers)
        ]
        for process in self._workers:
            process.start()

    def _work(self, seed: int, worker: int, workers: int) -> None:
        scratch, work = new_documents(MAX_DOCUMENT_SIZE), new_workspace()
        parent = os.getppid()
        index = worker
        while os.getppid() == parent:
            slot = self._free.get()
            batch = batch_over(self._buffers[slot], self._size)
            count = fill(batch, batch_seed(seed, index), scratch, work, self._first_moves)
            self._full.put((slot, index, count))
            index += workers

    def __iter__(self) -> Iterator[tuple[Batch, int, Callable[[], None]]]:
        """(batch, number of documents, a call that gives the buffer back)."""
        while True:
            slot, _, count = self._full.get()
            yield batch_over(self._buffers[slot], self._size), count, partial(self._free.put, slot)

    @property
    def ready(self) -> int:
        """Batches that wait to be taken."""
        return int(self._full.qsize())

    def close(self) -> None:
        """Stop the workers. May be called again."""
        for process in self._workers:
            process.terminate()
        for process in self._workers:
            process.join()
