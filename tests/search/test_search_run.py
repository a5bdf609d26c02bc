"""The loop around every algorithm: events, budgets, failures, and what is freed."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from frtool.search.budget import Budget
from frtool.search.events import Ended, NodeAdded, Pruned, RunStarted, Selected, Tick, from_record, to_record
from frtool.search.protocols import OutOfMemory
from frtool.search.registry import ALGORITHMS, make_algorithm
from frtool.search.run import run_search

ALL = list(ALGORITHMS)


class CountingScorer:
    name = "counting"

    def __init__(self, values=None):
        self.calls = []
        self.scored = []
        self.values = values

    def score(self, nodes, steps, tree):
        assert [node.text for node in nodes] == [step.text for step in steps]
        assert all(node.id not in tree for node in nodes)
        self.calls.append([node.id for node in nodes])
        self.scored += self.calls[-1]
        return [0.5] * len(nodes) if self.values is None else self.values


class Likes:
    """Verifies answers that the function likes."""

    name = "likes"

    def __init__(self, likes):
        self.likes = likes
        self.asked = []

    def verify(self, answer):
        self.asked.append(answer)
        return self.likes(answer)


def start(model, task, **settings):
    arguments = {"algorithm": make_algorithm("mcts"), "scorer": None, "budget": Budget(steps=200)} | settings
    return run_search(generator=model, task=task, **arguments)


@pytest.mark.parametrize("name", ALL)
def test_events_begin_with_the_run_and_end_with_the_end(search, name):
    found = search(name, prompt="Q", config={"seed": 3}, model=None)
    assert found.events[0] == RunStarted("Q", {"seed": 3}, {}, prompt_tokens=7)
    assert [event for event in found.events if isinstance(event, Ended)] == [found.events[-1]]
    assert all(from_record(to_record(event)) == event for event in found.events)


@pytest.mark.parametrize("name", ALL)
def test_every_node_was_selected_before_and_its_parent_came_before_it(search, fake_model, name):
    found = search(name, fake_model(branching=4, depth=4, early=0.2), budget=Budget(steps=150))
    selected, known = set(), {"0"}
    for event in found.events:
        if isinstance(event, Selected):
            assert not selected.intersection(event.ids)
            selected.update(event.ids)
        elif isinstance(event, NodeAdded):
            assert event.id in selected
            assert event.id.rpartition(".")[0] in known
            assert event.duplicate_of is None or event.duplicate_of in known
            if event.duplicate_of is None:
                known.add(event.id)
    assert found.end.nodes == len(known) - 1
    assert found.end.policy_tokens == found.model.policy_tokens


@pytest.mark.parametrize("name", ALL)
def test_the_same_search_twice_gives_the_same_events(search, fake_model, name):
    def events():
        return search(name, fake_model(branching=4, depth=4), budget=Budget(steps=150)).events

    assert events() == events()


@pytest.mark.parametrize("nodes", [1, 2, 17, 60])
@pytest.mark.parametrize("name", [name for name in ALL if name != "greedy"])
def test_a_node_budget_is_met_exactly(search, fake_model, name, nodes):
    options = {key: 40 for key in ("n", "width") if key in ALGORITHMS[name]}
    found = search(name, fake_model(branching=9, depth=5, capacity=8), options=options, budget=Budget(nodes=nodes))
    assert (found.end.reason, found.end.nodes) == ("nodes", nodes)


def test_a_step_budget_counts_duplicates_too(search, fake_model):
    found = search("mcts", fake_model(branching=2, depth=6), budget=Budget(steps=25))
    assert (found.end.reason, len(found.nodes())) == ("steps", 25)
    assert found.end.nodes < 25


def test_a_token_budget_counts_policy_and_scorer(search, fake_model):
    alone = search("best-of-n", fake_model(slowest=1), options={"n": 500}, budget=Budget(tokens=100))
    assert alone.end.reason == "tokens"
    assert 100 <= alone.end.policy_tokens < 100 + 5 * alone.model.capacity
    model = fake_model(slowest=1)
    model.scorer_tokens = 90
    both = search("best-of-n", model, options={"n": 500}, budget=Budget(tokens=100))
    assert both.end.policy_tokens < 30


def test_kv_bytes_stop_the_search_when_the_tree_holds_so_much(search, fake_model):
    class Weighed(fake_model):
        def kv(self):
            return replace(super().kv(), bytes_used=100 * len(self.held), recomputed_tokens=7)

    model = Weighed(branching=9, depth=5)
    found = search("best-first", model, budget=Budget(kv_bytes=1000))
    assert (found.end.reason, found.end.recomputed_tokens) == ("kv", 7)
    assert model.at_rest()
    assert found.end.answer is not None
    roomy = search("best-first", Weighed(branching=9, depth=2), budget=Budget(kv_bytes=10**6))
    assert roomy.end.reason == "exhausted"


def test_a_generator_is_told_what_its_nodes_are_worth(search, fake_model):
    told = {}

    class Valued(fake_model):
        def value(self, node_id, value):
            assert node_id in self.held
            told[node_id] = value

    found = search("beam", Valued())
    assert told == {n.id: n.reward for n in found.added().values() if n.terminal is None}


def test_seconds_are_read_from_the_clock(search):
    clock = itertools.count()
    found = search("mcts", budget=Budget(seconds=40), clock=lambda: float(next(clock)))
    assert found.end.reason == "seconds"
    assert found.end.seconds == pytest.approx(40, abs=3)


def test_an_interrupt_ends_the_search_with_the_best_so_far(search, fake_model):
    polls = itertools.count()
    found = search("mcts", fake_model(depth=3, branching=9), interrupted=lambda: next(polls) > 12)
    assert found.end.reason == "interrupted"
    assert found.end.answer is not None
    assert found.end.reward == max(node.reward for node in found.nodes() if node.terminal)


def test_without_a_finished_path_the_best_leaf_answers(search, fake_model):
    found = search("mcts", fake_model(depth=9), options={"leaf_batch": 1}, budget=Budget(nodes=3))
    assert found.end.best == "0.0.0.0"
    assert found.end.answer == found.text("0.0.0.0")
    assert found.end.terminals == 0


@pytest.mark.parametrize("reason", ["interrupted", "memory"])
def test_finished_steps_that_wait_for_an_earlier_one_still_count_at_the_end(search, scripted_model, reason):
    class SlowFirst(scripted_model):
        def submit(self, expand):
            super().submit(expand)
            self.under_way[expand] = 1000 if expand.ordinal == 0 else 1

    polls = itertools.count()
    model = SlowFirst(draws={"": "abcd"}, rewards={"a": 0.1, "b": 0.2, "c": 0.7, "d": 0.6}, capacity=4)
    poll = model.poll

    def full():
        if next(polls) > 5:
            raise OutOfMemory
        return poll()

    settings = {"interrupted": lambda: next(polls) > 5} if reason == "interrupted" else {}
    if reason == "memory":
        model.poll = full
    found = search("beam", model, options={"width": 4, "keep": 2, "distinct": False}, **settings)
    assert [node.id for node in found.nodes()] == ["0.1", "0.2", "0.3"]
    assert (found.end.reason, found.end.answer) == (reason, "c")


def test_a_path_ends_at_the_depth_limit(search, fake_model):
    found = search("best-of-n", fake_model(depth=99), options={"n": 2}, max_depth=4)
    assert [node.terminal for node in found.nodes() if node.id.count(".") == 4] == ["length", "length"]
    assert found.end.nodes == 8


def test_steps_that_finish_together_are_scored_in_one_call(search, fake_model):
    scorer = CountingScorer()
    found = search("best-of-n", fake_model(depth=3, capacity=4, slowest=1), options={"n": 8}, scorer=scorer)
    assert {len(call) for call in scorer.calls} == {4}
    assert sorted(scorer.scored) == sorted(node.id for node in found.nodes())
    assert {node.reward for node in found.nodes()} == {0.5}


def test_duplicates_are_not_scored(search, fake_model):
    scorer = CountingScorer()
    found = search("mcts", fake_model(branching=2, depth=4), scorer=scorer)
    assert any(node.duplicate_of for node in found.nodes())
    assert sorted(scorer.scored) == sorted(found.added())


@pytest.mark.parametrize("reward", [float("nan"), 1.5, -0.1])
def test_a_reward_outside_of_its_range_is_an_error_that_names_the_scorer(fake_model, letter_task, reward):
    class Broken(CountingScorer):
        def score(self, nodes, steps, tree):
            return [reward] * len(nodes)

    with pytest.raises(ValueError, match=r"counting gave node 0\.\d+ the reward"):
        list(start(fake_model(), letter_task, scorer=Broken()))


def test_a_scorer_that_skips_a_node_is_an_error(fake_model, letter_task):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        list(start(fake_model(), letter_task, scorer=CountingScorer([])))


def test_a_verifier_grades_without_steering(search, fake_model):
    judge = Likes(lambda answer: answer.startswith("a"))
    plain = search("mcts", fake_model())
    graded = search("mcts", fake_model(), verifier=judge)
    assert [(node.id, node.reward) for node in graded.nodes()] == [(node.id, node.reward) for node in plain.nodes()]
    for node in graded.nodes():
        expected = node.answer.startswith("a") if node.terminal and not node.duplicate_of else None
        assert node.duplicate_of or node.verified == expected
    assert graded.end.verified == graded.end.answer.startswith("a")
    assert len(judge.asked) == len(set(judge.asked))


def test_a_steering_verifier_rewards_and_stops_at_the_first_right_answer(search, fake_model):
    scorer = CountingScorer()
    judge = Likes(lambda answer: answer.startswith("b"))
    found = search("mcts", fake_model(), scorer=scorer, verifier=judge, steer=True)
    finished = [node for node in found.nodes() if node.terminal and not node.duplicate_of]
    assert found.end.reason == "solved"
    assert [node.reward for node in finished] == [0.0] * (len(finished) - 1) + [1.0]
    assert found.end.best == finished[-1].id
    assert found.end.verified is True
    assert not {node.id for node in finished}.intersection(scorer.scored)


def test_a_finished_path_without_an_answer_is_refuted(search, fake_model, letter_task):
    letter_task.answer = lambda text: None
    found = search("best-of-n", fake_model(), options={"n": 2}, verifier=Likes(bool))
    assert {node.verified for node in found.nodes() if node.terminal} == {False}
    assert found.end.answer is None


def test_steering_without_a_verifier_is_refused(fake_model, letter_task):
    with pytest.raises(ValueError, match="steer needs a verifier"):
        start(fake_model(), letter_task, steer=True)


@pytest.mark.parametrize("call", ["submit", "poll", "keep", "drop"])
def test_a_failure_is_the_reason_of_the_end_and_then_raised(fake_model, letter_task, call):
    model, count = fake_model(branching=2, slowest=1), itertools.count()
    works = getattr(model, call)

    def fails_later(*arguments):
        if next(count) == 5:
            raise ZeroDivisionError("by\nnought")
        return works(*arguments)

    setattr(model, call, fails_later)
    events = []
    with pytest.raises(ZeroDivisionError):
        events.extend(iter_into(events, start(model, letter_task)))
    assert events[-1].reason == "failed: ZeroDivisionError: by nought"
    assert set(model.held) == {"0"}
    assert not model.under_way


def iter_into(events, run):
    for event in run:
        events.append(event)
    return []


def test_a_failure_in_the_algorithm_frees_and_raises(fake_model, letter_task):
    algorithm, model, events = make_algorithm("mcts"), fake_model(), []
    algorithm.tell = lambda *_: 1 / 0
    algorithm.best = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        iter_into(events, start(model, letter_task, algorithm=algorithm))
    assert events[-1].reason.startswith("failed: ZeroDivisionError")
    assert events[-1].best is None
    assert model.at_rest()


def test_full_memory_ends_the_search_with_the_best_so_far(search, fake_model):
    model, count = fake_model(depth=3, branching=5), itertools.count()
    works = model.poll

    def poll():
        if next(count) == 30:
            raise OutOfMemory("block 7 of 7")
        return works()

    model.poll = poll
    found = search("mcts", model)
    assert found.end.reason == "memory"
    assert found.end.answer is not None


def test_a_keyboard_interrupt_writes_the_end_and_is_raised(fake_model, letter_task):
    model, count, events = fake_model(), itertools.count(), []
    works = model.poll

    def poll():
        if next(count) == 9:
            raise KeyboardInterrupt
        return works()

    model.poll = poll
    with pytest.raises(KeyboardInterrupt):
        iter_into(events, start(model, letter_task))
    assert events[-1].reason == "interrupted"
    assert model.at_rest()


@pytest.mark.parametrize("after", [1, 2, 3, 7, 40])
def test_a_run_that_is_closed_early_leaves_nothing_held(fake_model, letter_task, after):
    model = fake_model(branching=4)
    run = start(model, letter_task)
    for _ in range(after):
        next(run)
    run.close()
    assert model.at_rest()


def test_a_generator_that_loses_a_step_is_an_error_not_a_hang(fake_model, letter_task):
    model = fake_model()
    model.poll = lambda: (model.under_way.clear(), [])[1]
    with pytest.raises(RuntimeError, match=r"lost \d+ steps"):
        list(start(model, letter_task))


def test_a_generator_without_capacity_is_refused(fake_model, letter_task):
    with pytest.raises(ValueError, match="capacity is 0"):
        start(fake_model(capacity=0), letter_task)


def test_an_algorithm_may_not_let_go_of_a_node_with_children_under_way(fake_model, letter_task):
    algorithm = make_algorithm("best-of-n", {"n": 2})

    def tell(tree, expand, node):
        tree.want(node)
        return [tree.leave(node, "pruned", "whim")]

    algorithm.tell = tell
    with pytest.raises(ValueError, match="1 children under way"):
        list(start(fake_model(), letter_task, algorithm=algorithm))


def test_finished_paths_are_freed_at_once_and_pruned_ones_with_their_event(fake_model, letter_task):
    model = fake_model(branching=5, depth=3, capacity=16)
    finished, pruned = set(), set()
    for event in start(model, letter_task, algorithm=make_algorithm("beam")):
        if isinstance(event, Pruned):
            pruned.update(event.ids)
        elif isinstance(event, NodeAdded) and event.terminal and not event.duplicate_of:
            finished.add(event.id)
        assert not (finished | pruned).intersection(model.held)
    assert finished
    assert pruned


def test_ticks_come_no_more_often_than_asked_and_carry_the_counters(search, fake_model):
    clock = itertools.count()
    found = search(
        "best-of-n", fake_model(), options={"n": 64}, clock=lambda: next(clock) * 0.01, tick_seconds=0.25, scorer=None
    )
    ticks = [event for event in found.events if isinstance(event, Tick)]
    gaps = [after.seconds - before.seconds for before, after in itertools.pairwise(ticks)]
    assert len(ticks) > 2
    assert min(gaps) >= 0.25 - 1e-9
    assert ticks[-1].policy_tokens <= found.end.policy_tokens
    rate = (ticks[-1].policy_tokens - ticks[-2].policy_tokens) / gaps[-1]
    assert ticks[-1].tokens_per_second == pytest.approx(rate)


def test_time_changes_ticks_but_not_the_tree(search, fake_model):
    def tree(step):
        clock = itertools.count()
        found = search("mcts", fake_model(branching=4, depth=4), clock=lambda: next(clock) * step)
        return [event for event in found.events if not isinstance(event, Tick | Ended)]

    assert tree(0.0) == tree(3.0)


def test_a_step_that_ends_differs_from_the_same_text_that_goes_on(search, scripted_model):
    class Both(scripted_model):
        def step(self, expand):
            step = super().step(expand)
            return type(step)(step.parent, step.ordinal, "a", 1, -3.0, "end" if expand.ordinal % 2 else "step", 0.5)

    model = Both(draws=dict.fromkeys(("", "a", "aa", "aaa"), "a"))
    found = search("mcts", model, options={"leaf_batch": 1}, budget=Budget(steps=30), max_depth=4)
    kinds = {
        (node.id, node.terminal) for node in found.nodes() if re.fullmatch(r"0\.\d", node.id) and not node.duplicate_of
    }
    assert kinds == {("0.0", None), ("0.1", "end")}
