"""Reading prompts into the roots of their trees, several in one pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.kernels.allocator import OutOfBlocks
from frtool.search.events import ROOT_ID
from frtool.search.protocols import OutOfMemory

from .flight import nan_error
from .rows import Kept
from .shortage import shortage, told_as_shortage
from .steps import tail

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

    from .forest import Forest
    from .root import Root


def check_prompt(loaded: LoadedModel, tokens: int, positions: int) -> None:
    """Raise UsageError unless the prompt has tokens and leaves at least one of `positions` to an answer."""
    if not tokens:
        raise UsageError("the prompt has no tokens")
    if tokens >= positions:
        raise UsageError(
            f"the prompt has {tokens:,} tokens, {loaded.name} reads at most {loaded.max_positions:,} "
            "and needs room for an answer",
            hint="shorten the prompt",
        )


@dataclass(slots=True, eq=False)
class _Job:
    """The prompt of one root. Its branch is that of `trunk`, None until its turn has come."""

    root: Root
    trunk: Kept
    blocks: int
    """That it may take."""
    known: int = 0
    """Tokens in KV before the pass under way."""
    read: int = 0
    """Those and what the branch shares of what others read in this pass."""
    taken: int = 0
    """More that this pass reads."""
    begun: bool = False
    """Whether it had a branch before this pass."""

    @property
    def branch_id(self) -> int:
        assert self.trunk.branch_id is not None
        return self.trunk.branch_id


class Prefill:
    """The prompts that wait to be read. What one begins with and another has in KV is shared, and where both are read
    in the same pass, the whole blocks that they have in common."""

    def __init__(self, forest: Forest) -> None:
        self._forest: Forest = weakref.proxy(forest)  # so that nothing keeps the pool of a search that is over
        self._allocator = forest.allocator
        self._jobs: list[_Job] = []

    @property
    def blocks(self) -> int:
        """That the waiting prompts may take."""
        return sum(job.blocks for job in self._jobs)

    def add(self, root: Root, prompt: list[int]) -> Kept:
        """Queue a prompt and return the node of its root, whose logits and KV are to come. Raises OutOfMemory."""
        forest, allocator = self._forest, self._allocator
        blocks = -(-len(prompt) // allocator.block_size) + 1
        promised = self.blocks
        if allocator.free_blocks < promised + blocks:
            forest.evict(promised + blocks)
        if allocator.free_blocks < promised + blocks:
            raise OutOfMemory(
                f"a prompt of {len(prompt)} tokens needs {blocks} KV blocks, "
                f"{max(allocator.free_blocks - promised, 0)} are free"
            )
        trunk = Kept(
            id=ROOT_ID,
            parent=None,
            tokens=prompt,
            length=len(prompt),
            tail=tail(forest.detokenizer, prompt),
            logits=None,
            branch_id=None,
            pending=True,
        )
        self._jobs.append(_Job(root, trunk, blocks))
        return trunk

    def drop(self, root: Root) -> None:
        self._jobs = [job for job in self._jobs if job.root is not root]

    @torch.inference_mode()
    def read(self) -> None:
        """Read all prompts that wait, `prefill_chunk` tokens a pass. Where the device has no memory for a pass, they
        become half as long. A root whose prompt cannot be read is told why: NaN logits, or OutOfMemory."""
        chunk = self._forest.options.prefill_chunk
        while self._jobs:
            jobs = self._next(chunk)
            if not jobs:
                continue
            tokens = sum(job.taken for job in jobs)
            try:
                logits, whole = self._forward(jobs)
            except torch.OutOfMemoryError as error:
                for job in jobs:
                    self._undo(job)
                chunk = tokens // 2
                if not chunk:
                    self._fail(jobs[0], shortage(error, f"a prompt of {jobs[0].trunk.length} tokens"))
                    chunk = 1
                continue
            for job in jobs:
                job.known = job.read = job.read + job.taken
                job.taken, job.begun = 0, True
                if self._forest.on_prefill is not None:
                    self._forest.on_prefill(job.read)
            broken = logits[: len(whole)].isnan().any(-1).tolist()
            for job, row, nan in zip(whole, logits, broken, strict=False):
                self._finish(job, row, nan)

    def _next(self, chunk: int) -> list[_Job]:
        """The prompts of the next pass, in order, with as many tokens of each as it takes."""
        jobs: list[_Job] = []
        for job in list(self._jobs):
            if not chunk:
                break
            if job.trunk.branch_id is None:
                self._begin(job)
            count = min(job.trunk.length - job.read, chunk)
            if not self._append(job, count):
                continue
            job.taken = count
            jobs.append(job)
            chunk -= count
        return jobs

    def _begin(self, job: _Job) -> None:
        """Give a prompt its branch, with what others have read, or read in this pass, of the same beginning."""
        size = self._allocator.block_size
        under_way = {id(other.trunk): other for other in self._jobs}
        source, alike, known = None, size - 1, 0  # less than a block is not worth a copy
        for root in self._forest.roots:
            trunk = root.trunk
            if trunk.branch_id is None or trunk is job.trunk:
                continue
            common = _alike(trunk.tokens, job.trunk.tokens)
            other = under_way.get(id(trunk))
            ready = common if other is None else min(common, other.known)
            if other is not None and common > ready:
                # What this very pass computes is shared by the block: a copy of a part would be made too early.
                common = max(min(common, other.read + other.taken) // size * size, ready)
            if common > alike:
                source, alike, known = trunk.branch_id, common, min(common, ready)
        if source is None:
            job.trunk.branch_id, job.read = self._allocator.alloc_branch(0).branch_id, 0
        else:
            job.trunk.branch_id, job.read = self._allocator.fork(source, alike).branch_id, alike
        job.known = known

    def _append(self, job: _Job, count: int) -> bool:
        while True:
            try:
                self._allocator.append(job.branch_id, count)
                return True
            except OutOfBlocks as error:
                if self._forest.evict(error.needed):
                    continue
                self._fail(
                    job,
                    OutOfMemory(
                        f"a prompt of {job.trunk.length} tokens needs {error.needed} more KV blocks, "
                        f"{error.free} are free of {self._allocator.num_blocks}"
                    ),
                )
                return False

    def _forward(self, jobs: list[_Job]) -> tuple[torch.Tensor, list[_Job]]:
        """The logits after the prompts that this pass reads to their end, and these."""
        counts = [job.taken for job in jobs]
        stops = [stop - 1 for stop in accumulate(counts)]
        whole = [place for place, job in enumerate(jobs) if job.read + job.taken == job.trunk.length]
        logits = self._forest.batch.forward(
            [job.branch_id for job in jobs],
            counts,
            list(chain.from_iterable(job.trunk.tokens[job.read : job.read + job.taken] for job in jobs)),
            [stops[place] for place in whole] or stops[-1:],
        )
        return logits, [jobs[place] for place in whole]

    def _undo(self, job: _Job) -> None:
        """Take back what a pass was to read. A prompt that began with it begins again, for it may share what others of
        the pass were to read."""
        branch = job.branch_id
        job.trunk.branch_id = self._allocator.fork(branch, job.read).branch_id if job.begun else None
        self._allocator.free_branch(branch)
        job.taken = 0

    def _finish(self, job: _Job, logits: torch.Tensor, nan: bool) -> None:
        if nan:
            return self._fail(job, nan_error("the prompt"))
        try:
            with told_as_shortage("the logits of the prompt"):
                job.trunk.logits = logits.to(self._forest.loaded.dtype, copy=True)
        except OutOfMemory as error:
            return self._fail(job, error)
        job.trunk.pending = False
        self.drop(job.root)

    def _fail(self, job: _Job, error: Exception) -> None:
        self.drop(job.root)
        job.root.fail(error)


def _alike(first: list[int], second: list[int]) -> int:
    """Tokens that both begin with, at least one of the second left over."""
    most = min(len(first), len(second) - 1)
    return next((i for i in range(most) if first[i] != second[i]), most)
