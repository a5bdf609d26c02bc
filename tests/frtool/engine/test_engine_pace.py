"""Threads are given up where other programs have the cores, and tried again later."""

from __future__ import annotations

import pytest
import torch

from frtool.engine import Engine, EngineOptions
from frtool.engine.pace import Pace, may_change_threads


class Machine:
    """Clocks that a test moves, and the numbers of threads that were set."""

    def __init__(self, threads: int) -> None:
        self.now = self.ran = 0.0
        self.set: list[int] = []
        self.pace = Pace(threads, self.set.append, lambda: self.now, lambda: self.ran)

    def run(self, seconds: float, share: float) -> None:
        """A pass during which the main thread is on a core for `share` of the time."""
        with self.pace:
            self.now += seconds
            self.ran += share * seconds

    def idle(self, seconds: float) -> None:
        self.now += seconds


def test_free_cores_keep_all_threads():
    machine = Machine(2)
    for _ in range(100):
        machine.run(0.01, 0.97)
        machine.idle(5.0)
    assert machine.set == []


def test_a_program_that_comes_and_goes_within_a_pass_costs_no_threads():
    machine = Machine(2)
    for _ in range(10):
        machine.run(0.2, 0.7)
        machine.run(0.2, 1.0)
    assert machine.set == []


def test_a_taken_core_costs_threads_and_they_are_tried_again():
    machine = Machine(4)
    for _ in range(8):
        machine.run(0.01, 0.5)
    assert machine.set == [2]
    for _ in range(8):
        machine.run(0.01, 0.5)
    assert machine.set == [2, 1]
    machine.idle(0.5)
    machine.run(0.01, 0.9)
    assert machine.pace.threads == 1
    machine.idle(2.0)
    machine.run(0.01, 1.0)
    assert machine.pace.threads == 4


def test_every_failed_trial_doubles_the_pause_up_to_a_limit_and_a_good_one_ends_that():
    machine = Machine(2)
    pauses = []
    for _ in range(7):
        began = machine.now
        while machine.pace.threads == 1:
            machine.idle(0.1)
            machine.run(0.0, 0.0)
        pauses.append(machine.now - began)
        while machine.pace.threads == 2:
            machine.run(0.04, 0.3)
    assert pauses[1:] == pytest.approx([1, 2, 4, 8, 16, 16], abs=0.2)
    machine.idle(20.0)
    machine.run(0.04, 1.0)
    machine.run(0.04, 0.3)
    machine.run(0.04, 0.3)
    machine.idle(1.1)
    machine.run(0.04, 1.0)
    assert machine.pace.threads == 2


def test_one_thread_is_never_given_up():
    machine = Machine(1)
    for _ in range(10):
        machine.run(0.04, 0.1)
    assert machine.set == []


def test_threads_that_were_given_up_are_there_for_others_between_searches():
    machine = Machine(2)
    machine.pace.rest()
    assert machine.set == []
    for _ in range(8):
        machine.run(0.01, 0.5)
    machine.pace.rest()
    assert machine.set == [1, 2]
    machine.run(0.01, 1.0)
    assert machine.set == [1, 2, 1]
    machine.idle(2.0)
    machine.run(0.01, 1.0)
    assert machine.set == [1, 2, 1, 2]


def test_a_forest_leaves_the_threads_as_it_found_them(monkeypatch, tiny):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine = Engine(tiny, [1, 2, 3], EngineOptions())
        pace = engine.forest._pace
        if pace is None:
            pytest.skip("this torch gives other bits with other numbers of threads")
        pace._change(1)
        engine.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_pass_passes_through():
    machine = Machine(2)
    with pytest.raises(ZeroDivisionError), machine.pace:
        _ = 1 // 0


def test_threads_that_somebody_fixed_stay(monkeypatch, tiny):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not may_change_threads(tiny)


def test_the_number_of_threads_is_as_it_was_after_the_trial(monkeypatch, tiny):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        may_change_threads(tiny)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert not may_change_threads(tiny)
    finally:
        torch.set_num_threads(before)
