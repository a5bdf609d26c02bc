"""The run of one search: asks the algorithm, drives the generator, judges finished steps, tells, and yields events."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Generator as Coroutine
from typing import Any, NamedTuple, cast

from .budget import Budget
from .events import Ended, Event, NodeAdded, Pruned, RunStarted, Selected, Tick, id_order
from .judge import Judge
from .protocols import (
    Algorithm,
    Expand,
    Generator,
    OutOfMemory,
    Restorer,
    Scorer,
    StateTask,
    Step,
    Task,
    ValuedGenerator,
    Verifier,
)
from .record import Record, RecordedGenerator, RecordedJudge
from .select import votes
from .tree import Node, SearchTree
from .watch import Watch


def run_search(
    *,
    algorithm: Algorithm,
    generator: Generator,
    scorer: Scorer | None,
    task: Task,
    budget: Budget,
    verifier: Verifier | None = None,
    steer: bool = False,
    max_depth: int = 64,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    config: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    prompt: str = "",
    tick_seconds: float = 0.1,
    record: Record | None = None,
) -> Iterator[Event]:
    """Search until the algorithm is done, the tree is exhausted, a budget is spent or `interrupted()`.

    Yields RunStarted first and Ended last, also when something fails: then the reason is 'failed: …' and the error is
    raised after it. An OutOfMemory of the generator is not raised: reason 'memory', with the best answer so far.
    Without a scorer a step's reward is the generator's own reading. The verifier grades finished paths; with `steer`
    its verdict is their reward and the first right answer ends the search ('solved'). Nodes at `max_depth` end their
    path. Every node's KV but the root's is released by the end, also when the iterator is closed early.

    With a `record` the generator is a `Restorer`: what stands in the record is neither grown nor judged again.
    """
    if generator.capacity < 1:
        raise ValueError(f"the generator's capacity is {generator.capacity}; a search needs at least 1")
    if steer and verifier is None:
        raise ValueError("steer needs a verifier")
    if record is None:
        judge = Judge(task, scorer, verifier, steer=steer, max_depth=max_depth)
    else:
        recorded = RecordedGenerator(cast(Restorer, generator), record)
        generator = cast(Generator, recorded)
        judge = RecordedJudge(recorded, record, task, scorer, verifier, steer=steer, max_depth=max_depth)
    run = _Run(algorithm, generator, task, judge, budget, interrupted, clock, tick_seconds)
    return cast(Iterator[Event], run.events(RunStarted(prompt, config or {}, model or {}, generator.prompt_tokens)))


class Scoring:
    """What a search yields where it has told its scorer what it will ask for."""


SCORING = Scoring()
Search = Coroutine[Event | Scoring | None, None, None]
"""A search that can be driven step by step: events, SCORING where it waits for its scorer, and None where it waits for
its generator."""


def pausing_search(
    *,
    algorithm: Algorithm,
    generator: Generator,
    scorer: Scorer | None,
    task: Task,
    budget: Budget,
    verifier: Verifier | None = None,
    steer: bool = False,
    max_depth: int = 64,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    config: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    prompt: str = "",
    tick_seconds: float = 0.1,
) -> Search:
    """`run_search` that yields None each time before it polls the generator, and SCORING each time before it scores
    where the scorer can share passes, so that many can share one pass."""
    judge = Judge(task, scorer, verifier, steer=steer, max_depth=max_depth)
    run = _Run(algorithm, generator, task, judge, budget, interrupted, clock, tick_seconds, pauses=True)
    return run.events(RunStarted(prompt, config or {}, model or {}, generator.prompt_tokens))


_CUT_SHORT = ("tokens", "seconds", "interrupted")
"""Reasons that say nothing of how many steps there may be, so that finished steps which wait for their turn count."""


class _Finished(NamedTuple):
    expand: Expand
    step: Step
    poll: int
    """Which poll brought it."""


class _Run:
    def __init__(
        self,
        algorithm: Algorithm,
        generator: Generator,
        task: Task,
        judge: Judge,
        budget: Budget,
        interrupted: Callable[[], bool],
        clock: Callable[[], float],
        tick_seconds: float,
        pauses: bool = False,
    ) -> None:
        self.algorithm = algorithm
        self.generator = generator
        self.task = task
        self.valued = generator if isinstance(generator, ValuedGenerator) else None
        self.state_task = task if algorithm.merges and isinstance(task, StateTask) else None
        self.judge = judge
        self.budget = budget
        self.interrupted = interrupted
        self.clock = clock
        self.tick_seconds = tick_seconds
        self.pauses = pauses

        self.tree = SearchTree()
        self.steps = 0
        self.solved = False
        self.asked: dict[tuple[str, int], tuple[int, Expand]] = {}
        """Steps under way, told not yet, by parent and ordinal, with their place in the order of asking."""
        self.places = 0
        self.turn = 0
        """Place of the next result to tell, where the algorithm wants them in order."""
        self.finished: dict[int, _Finished] = {}
        """Steps that the generator holds and nobody has kept or dropped, by place."""
        self.polls = 0
        self.held: set[str] = set()
        """Nodes whose KV the generator holds for us."""

        self.watch = Watch(None if pauses else generator)
        self.started = clock()
        self.ticked: float | None = None
        self.ticked_tokens = generator.policy_tokens

    def events(self, first: RunStarted) -> Search:
        error: BaseException | None = None
        try:
            yield first
            reason = yield from self._search()
            self._free()
        except OutOfMemory:
            reason = "memory"
            error = self._free_after_failure()
        except KeyboardInterrupt as interrupt:
            reason, error = "interrupted", interrupt
            self._free_after_failure()
        except GeneratorExit:
            self._free()
            raise
        except Exception as failure:
            reason, error = f"failed: {_one_line(failure)}", failure
            self._free_after_failure()
        try:
            best = self.algorithm.best(self.tree)
        except Exception as failure:
            best = None
            if error is None:
                reason, error = f"failed: {_one_line(failure)}", failure
        yield self._ended(reason, best)
        if error is not None:
            raise error

    def _search(self) -> Coroutine[Event | Scoring | None, None, str]:
        generator, algorithm, tree = self.generator, self.algorithm, self.tree
        interrupted, limited = self.interrupted, self.budget.runs
        news = True
        """Whether the algorithm might say something else than it did: it was told of a step, or had no room."""
        while True:
            reason = self._stop(news)
            if reason is not None:
                if reason in _CUT_SHORT:
                    yield from self._salvage()
                return reason
            wanted: list[Expand] = []
            if news:
                room = generator.capacity - generator.outstanding
                left = self.budget.room(nodes=len(tree), steps=self.steps, under_way=len(self.asked))
                if left is not None and left < room:
                    room = left
                if room > 0:
                    wanted = algorithm.ask(tree, room)
                    if len(wanted) > room:
                        raise ValueError(f"{algorithm.name} asked for {len(wanted)} steps where {room} were allowed")
                news = len(wanted) >= room
            if wanted:
                for expand in wanted:
                    generator.submit(expand)
                    self.asked[expand.parent, expand.ordinal] = self.places, expand
                    self.places += 1
                yield Selected([expand.id for expand in wanted])
            elif not self.asked:
                return "exhausted"
            try:
                while True:
                    if self.pauses:
                        yield None
                    self.polls += 1
                    steps = generator.poll()
                    # Most polls finish no step, and then little can end the search and nothing make room in it.
                    if steps or news or limited or interrupted() or not generator.outstanding:
                        break
                    yield from self._tick()
            except OutOfMemory:
                yield from self._salvage()
                return "memory"
            if steps:
                ready = self._ready(steps)
                news = news or bool(ready)
                yield from self._settle(ready)
            elif not generator.outstanding:
                raise RuntimeError(f"the generator lost {len(self.asked) - len(self.finished)} steps")
            yield from self._tick()

    def _stop(self, news: bool) -> str | None:
        if news:
            reason = "solved" if self.solved else self.algorithm.done(self.tree)
            if reason:
                return reason
        if self.interrupted():
            return "interrupted"
        if not news and not self.budget.runs:
            return None
        generator = self.generator
        return self.budget.spent(
            tokens=generator.policy_tokens + generator.scorer_tokens,
            nodes=len(self.tree),
            steps=self.steps,
            seconds=self.clock() - self.started,
            kv_bytes=generator.kv().bytes_used if self.budget.kv_bytes is not None else 0,
        )

    def _ready(self, steps: list[Step]) -> list[tuple[int, _Finished]]:
        """Finished steps that may be told now, in an order that does not depend on when they finished."""
        for step in steps:
            place, expand = self.asked[step.parent, step.ordinal]
            self.finished[place] = _Finished(expand, step, self.polls)
        if not self.algorithm.ordered:
            return sorted(self.finished.items(), key=lambda item: id_order(item[1].expand.id))
        ready = []
        while self.turn in self.finished:
            ready.append((self.turn, self.finished[self.turn]))
            self.turn += 1
        return ready

    def _salvage(self) -> Iterator[Event | Scoring]:
        """Let the finished steps that wait for their turn join the tree, because no turn will come."""
        return self._settle(sorted(self.finished.items()), told=False)

    def _settle(self, ready: list[tuple[int, _Finished]], told: bool = True) -> Iterator[Event | Scoring]:
        """Turn finished steps into nodes, score them in one call, and tell the algorithm of one after the other."""
        tree = self.tree
        results: list[tuple[_Finished, Node, bool]] = []
        for place, finished in ready:
            step = finished.step
            node, new = tree.make(step, *self._keys(step))
            if new:
                self.generator.keep(step)
                self.held.add(node.id)
                self.judge.end(node)
            else:
                self.generator.drop(step)
            del self.finished[place]
            results.append((finished, node, new))
        fresh = [(finished.step, node) for finished, node, new in results if new]
        before = self.generator.scorer_tokens
        if self.pauses and self.judge.ask(fresh, tree):
            yield SCORING
        self.judge.reward(fresh, tree)
        judge_tokens = self.generator.scorer_tokens - before
        for finished, node, new in results:
            expand, step = finished.expand, finished.step
            del self.asked[step.parent, step.ordinal]
            self.steps += 1
            novel = tree.learn(step)
            if new:
                tree.attach(node)
                self.solved = self.judge.solves(node)
                if node.terminal is not None:
                    self._release(node)
                elif self.valued is not None and node.reward is not None:
                    self.valued.value(node.id, node.reward)
            else:
                tree.repeat(expand, node, novel=novel)
            told_later = bool(judge_tokens) and step is not fresh[-1][0]
            cost = 0 if not new else None if told_later else judge_tokens
            yield self._node_added(finished, node, new, judge_tokens=cost, late=not told)
            if not told:
                continue
            leaving = self.algorithm.tell(tree, expand, node)
            if tree.journal:
                yield from tree.journal
                tree.journal.clear()
            if leaving:
                yield from self._let_go(leaving)
            if self.solved or self.algorithm.done(tree):
                return

    def _keys(self, step: Step) -> tuple[Hashable | None, str | None]:
        """Equality key among siblings and state key; an ended step differs from one that goes on with the same text."""
        if not self.algorithm.merges:
            return None, None
        state = None
        if self.state_task is not None and step.finish == "step":
            state = self.state_task.state(self.tree[step.parent].path_text + step.text)
        return (self.task.key(step.text), step.finish), state

    def _node_added(
        self, finished: _Finished, node: Node, new: bool, *, judge_tokens: int | None, late: bool
    ) -> NodeAdded:
        step = finished.step
        return NodeAdded(
            id=node.id if new else finished.expand.id,
            text=step.text,
            tokens=step.tokens,
            logprob=step.logprob,
            prior=(node.prior if self.algorithm.merges else node.weight) if new else 0.0,
            reward=node.reward,
            terminal=node.terminal,
            answer=node.answer,
            verified=node.verified,
            duplicate_of=None if new else node.id,
            token_ids=list(step.ids),
            intervals=[] if self.tree[step.parent].lines is None else list(step.intervals),
            finish=step.finish,
            reading=step.reward,
            read_tokens=step.read_tokens,
            judge_tokens=judge_tokens,
            poll=finished.poll,
            late=late,
        )

    def _let_go(self, leaving: list[Node]) -> Iterator[Event]:
        reasons: dict[str, list[str]] = {}
        for node in leaving:
            if node.pending:
                raise ValueError(f"{self.algorithm.name} let node {node.id} go with {node.pending} children under way")
            self._release(node)
            if node.state in ("pruned", "closed"):
                reasons.setdefault(node.why, []).append(node.id)
        for reason, ids in reasons.items():
            yield Pruned(ids, reason)

    def _release(self, node: Node) -> None:
        if node.id in self.held:
            self.generator.release(node.id)
            self.held.remove(node.id)

    def _free(self) -> None:
        """Give back everything but the root."""
        self.generator.cancel()
        while self.finished:
            self.generator.drop(self.finished.popitem()[1].step)
        while self.held:
            self.generator.release(self.held.pop())

    def _free_after_failure(self) -> Exception | None:
        """`_free`, whose own failure must not hide the first one."""
        try:
            self._free()
        except Exception as error:
            return error
        return None

    def _tick(self) -> Iterator[Tick]:
        """One where `tick_seconds` have passed since the last."""
        now = self.clock()
        if self.ticked is not None and now - self.ticked < self.tick_seconds:
            return
        generator = self.generator
        kv = generator.kv()
        tokens = generator.policy_tokens
        since = now - (self.started if self.ticked is None else self.ticked)
        rate = (tokens - self.ticked_tokens) / since if since > 0 else 0.0
        self.ticked, self.ticked_tokens = now, tokens
        yield Tick(
            seconds=now - self.started,
            policy_tokens=tokens,
            scorer_tokens=generator.scorer_tokens,
            nodes=len(self.tree),
            rows=generator.outstanding,
            capacity=generator.capacity,
            blocks_used=kv.blocks_used,
            blocks_total=kv.blocks_total,
            physical_tokens=kv.physical_tokens,
            logical_tokens=kv.logical_tokens,
            forks=kv.forks,
            frees=kv.frees,
            tokens_per_second=rate,
            growing=self.watch.gained(),
            evicted=self.watch.evicted(),
            recomputed_tokens=kv.recomputed_tokens,
            restored_tokens=kv.restored_tokens,
        )

    def _ended(self, reason: str, best: Node | None) -> Ended:
        generator, tree = self.generator, self.tree
        answer = None
        if best is not None:
            answer = best.answer if best.terminal is not None else self.task.answer(best.path_text)
        kv = generator.kv()
        return Ended(
            reason=reason,
            best=None if best is None else best.id,
            answer=answer,
            reward=None if best is None else best.reward,
            votes=0 if best is None else votes(tree, best),
            verified=None if best is None else best.verified,
            seconds=self.clock() - self.started,
            policy_tokens=generator.policy_tokens,
            scorer_tokens=generator.scorer_tokens,
            prompt_tokens=generator.prompt_tokens,
            nodes=len(tree),
            terminals=len(tree.terminals),
            kv_peak_blocks=kv.peak_blocks,
            kv_peak_bytes=kv.peak_bytes,
            kv_unshared_peak_bytes=kv.unshared_peak_bytes,
            recomputed_tokens=kv.recomputed_tokens,
            restored_tokens=kv.restored_tokens,
        )


def failed(error: Exception) -> Ended:
    """The last event of a search that never began."""
    return Ended(f"failed: {_one_line(error)}", None, None)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
