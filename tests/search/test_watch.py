"""What ticks tell of growing steps and of evicted nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from frtool.search.watch import MOST_TOLD, Watch


@dataclass
class Typist:
    texts: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    def growing(self):
        return self.texts.items()

    def take_evicted(self):
        gone, self.gone = self.gone, []
        return gone


def test_each_look_tells_what_was_gained():
    typist = Typist({"0.0": "ab"})
    watch = Watch(typist)
    assert watch.gained() == {"0.0": "ab"}
    assert watch.gained() == {}
    typist.texts |= {"0.0": "abcd", "0.1": "x"}
    assert watch.gained() == {"0.0": "cd", "0.1": "x"}
    del typist.texts["0.0"]
    typist.texts["0.1"] = "xy"
    assert watch.gained() == {"0.1": "y"}


def test_a_step_that_comes_into_sight_late_is_told_whole():
    typist = Typist({f"0.{i}": "a" for i in range(MOST_TOLD + 1)})
    watch = Watch(typist)
    assert len(watch.gained()) == MOST_TOLD
    del typist.texts["0.3"]
    typist.texts[f"0.{MOST_TOLD}"] = "abc"
    assert watch.gained() == {f"0.{MOST_TOLD}": "abc"}


def test_evicted_nodes_are_told_once():
    watch = Watch(Typist(gone=["0.1"]))
    assert watch.evicted() == ["0.1"]
    assert watch.evicted() == []


def test_a_generator_that_shows_nothing_has_nothing_to_tell():
    watch = Watch(object())
    assert watch.gained() == {}
    assert watch.evicted() == []
