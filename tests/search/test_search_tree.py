"""The tree by itself: ids, equality, statistics."""

from __future__ import annotations

import math

import pytest

from frtool.search.events import Backup, id_order
from frtool.search.protocols import Expand, Step
from frtool.search.tree import SearchTree


def grow(tree, parent, text, *, key=None, state=None, logprob=-1.0, tokens=1, terminal=None):
    expand = tree.want(tree[parent])
    step = Step(parent, expand.ordinal, text, tokens, logprob, "step")
    node, new = tree.make(step, key, state)
    if new:
        node.terminal = terminal
        tree.attach(node)
    else:
        tree.repeat(expand, node)
    return node, new


def test_ids_are_paths_of_ordinals_and_count_every_sample():
    tree = SearchTree()
    grow(tree, "0", "a", key="a")
    grow(tree, "0", "a", key="a")
    node, _ = grow(tree, "0", "b", key="b")
    below, _ = grow(tree, node.id, "c", key="c")
    assert (node.id, below.id) == ("0.2", "0.2.0")
    assert len(tree) == 3
    assert below.path() == [tree.root, node, below]
    assert below.path_text == "bc"
    assert (below.path_tokens, below.path_logprob, below.depth) == (2, -2.0, 2)


def test_ids_sort_by_number_not_by_letters():
    assert sorted(["0.10", "0.2", "0", "0.2.0"], key=id_order) == ["0", "0.2", "0.2.0", "0.10"]


def test_an_equal_sibling_is_a_duplicate_but_an_equal_step_elsewhere_is_not():
    tree = SearchTree()
    first, _ = grow(tree, "0", "a", key="a")
    again, new = grow(tree, "0", "a", key="a")
    assert again is first
    assert not new
    assert (first.copies, tree.root.duplicates) == (2, 1)
    _, new = grow(tree, first.id, "a", key="a")
    assert new


def test_an_equal_state_is_a_duplicate_anywhere_in_the_tree():
    tree = SearchTree()
    left, _ = grow(tree, "0", "l", key="l")
    right, _ = grow(tree, "0", "r", key="r")
    place, _ = grow(tree, left.id, "x", key="x", state="home")
    same, new = grow(tree, right.id, "y", key="y", state="home")
    assert same is place
    assert not new
    assert right.children == []
    assert right.duplicates == 1


def test_something_new_resets_the_count_of_duplicates():
    tree = SearchTree()
    for text in "aaa":
        grow(tree, "0", text, key=text)
    assert tree.root.duplicates == 2
    grow(tree, "0", "b", key="b")
    assert tree.root.duplicates == 0


def test_steps_without_a_key_are_never_merged():
    tree = SearchTree()
    assert grow(tree, "0", "a")[0] is not grow(tree, "0", "a")[0]


def test_the_prior_is_the_share_of_mean_token_probability_among_siblings():
    tree = SearchTree()
    one, _ = grow(tree, "0", "a", key="a", logprob=2 * math.log(0.6), tokens=2)
    assert one.prior == 1.0
    two, _ = grow(tree, "0", "b", key="b", logprob=math.log(0.2), tokens=1)
    assert one.prior == pytest.approx(0.75)
    assert two.prior == pytest.approx(0.25)
    assert tree.root.mass == pytest.approx(0.36 + 0.2)


def test_a_backup_adds_one_visit_and_the_value_up_to_the_root():
    tree = SearchTree()
    node, _ = grow(tree, "0", "a")
    leaf, _ = grow(tree, node.id, "b", terminal="end")
    tree.backup(leaf, 0.25)
    tree.backup(node, 0.75)
    assert [(n.visits, n.total, n.peak) for n in (tree.root, node, leaf)] == [
        (2, 1.0, 0.75),
        (2, 1.0, 0.75),
        (1, 0.25, 0.25),
    ]
    assert node.mean == 0.5
    assert tree.journal == [Backup(leaf.id, 0.25), Backup(node.id, 0.75)]


def test_a_node_that_left_cannot_be_expanded_and_is_not_live():
    tree = SearchTree()
    node, _ = grow(tree, "0", "a")
    assert tree.root.live == [node]
    tree.leave(node, "pruned", "beam")
    assert tree.root.live == []
    assert tree.root.children == [node]
    with pytest.raises(ValueError, match="pruned"):
        tree.want(node)


def test_finished_paths_are_not_live():
    tree = SearchTree()
    node, _ = grow(tree, "0", "a", terminal="end")
    assert tree.terminals == [node]
    assert tree.root.live == []
    with pytest.raises(ValueError, match="terminal"):
        tree.want(node)


def test_requests_take_the_ordinals_in_turn_and_count_as_pending():
    tree = SearchTree()
    assert [tree.want(tree.root) for _ in range(2)] == [Expand("0", 0), Expand("0", 1)]
    assert tree.root.pending == 2
