"""The mirror of a search, what is folded away, and the lines that are drawn."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from frtool.search.events import Backup, Ended, NodeAdded, Pruned, Resumed, RunStarted, Selected, Tick
from frtool.view.draw import draw
from frtool.view.fold import fold
from frtool.view.glyphs import ASCII, UNICODE
from frtool.view.line import Line
from frtool.view.model import TreeModel
from frtool.view.record import tree_record
from frtool.view.report import report

WIDE_TEXT = st.text(
    st.characters(exclude_categories=("Cs",)) | st.sampled_from("日本語👍🏽e\u0301\x1b\u202e\n"), max_size=60
)


def node(node_id: str, **fields) -> NodeAdded:
    values = {"text": f"step {node_id}", "tokens": 3, "logprob": -1.0, "prior": 0.5} | fields
    return NodeAdded(node_id, **values)


def model_of(*events) -> TreeModel:
    model = TreeModel()
    for event in (RunStarted("the question", {"algorithm": "mcts", "nodes": 10}, {"name": "embedded"}, 7), *events):
        model.apply(event)
    return model


@st.composite
def trees(draw_from):
    """A model with a random tree, some of its nodes finished, pruned, copied, or under way."""
    ids = ["0"]
    events = []
    for _ in range(draw_from(st.integers(0, 40))):
        parent = draw_from(st.sampled_from(ids))
        child = f"{parent}.{sum(i.rpartition('.')[0] == parent for i in ids)}"
        terminal = draw_from(st.sampled_from([None, None, "end", "length"]))
        reward = draw_from(st.none() | st.floats(0, 1))
        events.append(node(child, text=draw_from(WIDE_TEXT), terminal=terminal, reward=reward, answer="24"))
        if draw_from(st.booleans()):
            events.append(Backup(child, draw_from(st.floats(0, 1))))
        if draw_from(st.integers(0, 9)) == 0:
            events.append(Pruned([child], "beam"))
        if draw_from(st.integers(0, 9)) == 0:
            events.append(Selected([f"{child}.99"]))
        ids.append(child)
    return model_of(*events)


@settings(max_examples=150, deadline=None)
@given(trees(), st.integers(1, 50))
def test_folding_fits_and_loses_no_node(model, height):
    rows = fold(model, height)
    assert 1 <= len(rows) <= height
    shown = [row.node.id for row in rows if row.node is not None]
    assert len(set(shown)) == len(shown)
    path = model.best().path()
    if len(path) < height:
        assert {n.id for n in path} <= set(shown)
        hidden = sum(row.hidden for row in rows)
        assert len(shown) + hidden == len(model.nodes)


@settings(max_examples=100, deadline=None)
@given(trees(), st.integers(1, 200), st.integers(1, 60), st.sampled_from([UNICODE, ASCII]))
def test_the_picture_fits_every_window(model, width, height, glyphs):
    lines = draw(model, width, height, glyphs)
    assert 1 <= len(lines) <= height
    for line in lines:
        assert line.width == cell_len(line.plain) <= max(width, 20)
        assert "\n" not in line.plain
        assert "\x1b" not in line.plain
        assert glyphs is UNICODE or line.plain.isascii()


@given(st.lists(st.tuples(st.text(st.characters(categories=("L", "So", "Mn"))), st.just("bold"))), st.integers(0, 30))
def test_a_fitted_line_has_its_width(runs, width):
    assert Line(*runs).fit(width).width == width


def test_a_long_path_keeps_its_head_and_its_end():
    ids = ["0" + ".0" * depth for depth in range(1, 60)]
    model = model_of(*(node(i) for i in ids), node(ids[-1] + ".0", terminal="end", reward=1.0))
    rows = fold(model, 12)
    assert [r.skipped for r in rows if r.skipped] == [61 - 11]
    assert rows[0].node is model.root
    assert rows[-1].node is model.best()
    text = "\n".join(line.plain for line in draw(model, 80, 16))
    assert re.search(r"╰╴… \d+ steps", text)


def test_the_rest_is_counted():
    model = model_of(*(node(f"0.{i}", reward=i / 100) for i in range(30)))
    text = [line.plain for line in draw(model, 80, 14)]
    assert any("+22 more" in line for line in text), "\n".join(text)


def test_marks_tell_what_became_of_a_node():
    model = model_of(
        node("0.0", terminal="end", verified=True, answer="24", reward=0.9),
        node("0.1", terminal="end", verified=False, answer="7", reward=0.1),
        node("0.2", terminal="end"),
        node("0.3", terminal="length"),
        node("0.4"),
        node("0.5"),
        Pruned(["0.5"], "beam"),
        node("0.6", duplicate_of="0.4"),
        Selected(["0.4.0", "0.4.1"]),
        node("0.7"),
        Pruned(["0.7"], "exhausted"),
    )
    lines = {line.plain[2:3]: line.plain for line in draw(model, 80, 20) if line.plain[:1] in "├╰"}
    assert "step 0.0" in lines["✓"]
    assert "step 0.1" in lines["✗"]
    assert "step 0.2" in lines["●"]
    assert "step 0.3" in lines["◑"]
    assert f"step 0.4 {UNICODE.copies}2 ⋯2" in lines["○"]
    assert "step 0.5" in lines["∅"]
    assert "step 0.7" in lines["◉"]


@pytest.mark.parametrize("width", [64, 80, 89, 90, 110, 120, 200])
def test_a_step_has_its_text_and_all_figures(width):
    reasoned = "so the two remaining numbers"
    model = model_of(node("0.0", text=reasoned, prior=0.25, reward=0.75), node("0.1", prior=0.5), Backup("0.0", 0.5))
    lines = [line.plain.partition("│")[0].rstrip() for line in draw(model, width, 40)]
    assert any(line.endswith("reward prior") or line.endswith("reward  prior") for line in lines)
    scored = next(line for line in lines if reasoned in line)
    assert re.search(r"█+▏? +0\.50 +1 +(███▊|0\.75) +0\.25$", scored)
    unscored = next(line for line in lines if "step 0.1" in line)
    assert re.search(r" - +- +- +0\.50$", unscored), unscored


@pytest.mark.parametrize("width", [30, 50, 63])
def test_a_narrow_window_keeps_the_text_rather_than_the_prior(width):
    text = "\n".join(line.plain for line in draw(model_of(node("0.0", prior=0.25)), width, 40))
    assert "step 0.0" in text
    assert "prior" not in text


def tick(seconds: float = 1.0, **fields) -> Tick:
    return Tick(seconds, 100, 9, 3, 4, 16, 30, 100, 400, 900, **fields)


def test_steps_are_shown_while_they_are_written():
    model = model_of(
        node("0.0"), node("0.1"), Selected(["0.0.0", "0.1.0", "0.2"]),
        tick(growing={"0.0.0": "first", "0.1.0": "other", "0.9": "nobody asked"}), tick(growing={"0.0.0": " words"}),
    )  # fmt: skip
    for width in (80, 160):
        lines = [line.plain for line in draw(model, width, 24)]
        at = next(i for i, line in enumerate(lines) if "step 0.0" in line)
        assert "╰╴⋯ first words" in lines[at + 1]
        assert not any("nobody asked" in line for line in lines)
    model.apply(node("0.0.0", text="first words and the rest"))
    text = "\n".join(line.plain for line in draw(model, 80, 24))
    assert "⋯ first words" not in text
    assert "⋯ other" in text
    model.apply(Ended("finished", "0.0.0", None))
    assert "⋯" not in "\n".join(line.plain for line in draw(model, 80, 24))


@settings(max_examples=100, deadline=None)
@given(trees(), st.integers(20, 200), st.integers(1, 60), st.lists(WIDE_TEXT, max_size=20))
def test_what_grows_fits_every_window(model, width, height, texts):
    ids = [f"{name}.{99 + i}" for i, (name, _) in enumerate(zip(list(model.nodes) * 20, texts, strict=False))]
    model.apply(Selected(ids))
    model.apply(tick(growing=dict(zip(ids, texts, strict=True))))
    lines = draw(model, width, height)
    assert 1 <= len(lines) <= height
    assert all(line.width == cell_len(line.plain) <= width for line in lines)


def test_what_grew_before_a_run_broke_off_is_told_anew():
    model = model_of(Selected(["0.0"]), tick(growing={"0.0": "lost "}), Resumed(1.0, 0), tick(growing={"0.0": "new"}))
    text = "\n".join(line.plain for line in draw(model, 80, 24))
    assert "⋯ new" in text
    assert "lost" not in text
    assert "resumed" in text


def test_the_end_of_a_long_growing_step_is_shown():
    model = model_of(Selected(["0.0"]), tick(growing={"0.0": "begins here " + "and goes on " * 30 + "to its end"}))
    text = "\n".join(line.plain for line in draw(model, 80, 24))
    assert "to its end" in text
    assert "begins here" not in text


def test_an_evicted_node_is_marked_until_it_is_expanded_again():
    model = model_of(node("0.0"), tick(evicted=["0.0", "0.7"]))
    assert "╰╴◌ step 0.0" in "\n".join(line.plain for line in draw(model, 80, 24))
    model.apply(Selected(["0.0.0"]))
    assert "╰╴○ step 0.0" in "\n".join(line.plain for line in draw(model, 80, 24))


def test_reused_tokens_are_those_above_each_step():
    model = model_of(node("0.0"), node("0.0.0"), node("0.1", duplicate_of="0.0"))
    assert model.reused == 7 + (7 + 3) + 7


def test_the_report_tells_what_was_reused_and_what_was_read_again():
    model = model_of(node("0.0"), node("0.0.0"), Ended("finished", "0.0.0", "24", recomputed_tokens=5))
    text = "\n".join(str(block) for block in report(model))
    assert "12 tokens reused, 5 read again" in text


def test_best_is_the_finished_path_with_the_best_reward_then_what_the_search_chose():
    model = model_of(
        node("0.0", terminal="end", answer="1", reward=0.4), node("0.1", terminal="end", answer="2", reward=0.6)
    )
    assert model.best().id == "0.1"
    model.apply(Ended("finished", "0.0", "1"))
    assert model.best().id == "0.0"


def test_before_any_path_is_finished_best_is_the_most_promising_line():
    model = model_of(
        node("0.0", reward=0.2), node("0.1", reward=0.7), node("0.1.0", reward=0.1), node("0.2", reward=0.9)
    )
    model.apply(Pruned(["0.2"], "beam"))
    assert model.best().id == "0.1.0"


def test_events_about_nodes_that_nobody_told_of_do_no_harm():
    model = TreeModel()
    for event in (Backup("0.3.1", 1.0), Pruned(["0.9"], "beam"), node("0.5.5.5"), node("0.1", duplicate_of="0.7")):
        model.apply(event)
    assert {"0.3.1", "0.9", "0.5.5", "0.7"} <= set(model.nodes)
    assert draw(model, 80, 24)


def test_counters_are_shown_while_it_runs():
    tick = Tick(1.5, 1204, 93, 12, 14, 16, 312, 1024, 4992, 39000, 210, 160, 812.0, note="the pool is nearly full")
    model = model_of(tick, node("0.0", terminal="end", answer="24", reward=0.98))
    for width in (80, 160):
        text = "\n".join(line.plain for line in draw(model, width, 40))
        for words in ("312", "1,024 blocks", "4,992", "39,000", "7.8x", "812 tokens/s", "14", "0.98"):
            assert words in text, (width, words, text)
        assert "1.5 s" in text
        assert "nodes" in text
        assert "the pool is nearly full" in text


@pytest.mark.parametrize("algorithm", ["greedy", "best-of-n", "beam", "mcts"])
def test_two_runs_with_one_seed_give_the_same_tree(make_events, algorithm):
    def tree(seed: int) -> str:
        model = TreeModel()
        for event in make_events(algorithm, seed=seed):
            model.apply(event)
        return json.dumps(tree_record(model))

    assert tree(1) == tree(1)
    assert tree(1) != tree(2)


def test_the_tree_record_nests_by_ordinal_and_does_not_depend_on_the_order_of_finishing():
    first = [node("0.0"), node("0.1"), Backup("0.0", 0.1), Backup("0.1", 0.2), Backup("0.0", 0.3)]
    swapped = [node("0.1"), node("0.0"), Backup("0.0", 0.3), Backup("0.1", 0.2), Backup("0.0", 0.1)]
    one, other = tree_record(model_of(*first)), tree_record(model_of(*swapped))
    assert one == other
    assert [c["id"] for c in one["children"]] == ["0.0", "0.1"]
    assert one["visits"] == 3
    assert one["value"] == pytest.approx(0.2)
    assert one["text"] == "the question"


def test_duplicates_stand_in_the_record_at_their_place():
    model = model_of(node("0.0"), node("0.1", duplicate_of="0.0"), node("0.2"))
    children = tree_record(model)["children"]
    assert [c["id"] for c in children] == ["0.0", "0.1", "0.2"]
    assert children[1]["duplicate_of"] == "0.0"


@pytest.mark.parametrize("width", [80, 160])
def test_a_verifier_that_steers_is_shown_as_such(make_events, width):
    def text(steer: bool) -> str:
        model = TreeModel()
        for event in make_events(steer=steer):
            model.apply(event)
        return "\n".join(line.plain for line in draw(model, width, 40))

    assert "steered by the verifier" in text(True)
    assert "steer" not in text(False)
