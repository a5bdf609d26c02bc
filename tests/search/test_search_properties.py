"""What holds for every search over every model, whatever the settings."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.search.budget import Budget
from frtool.search.events import Backup, NodeAdded
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search

CONFIGURATIONS = st.one_of(
    st.tuples(st.just("greedy"), st.just({})),
    st.tuples(st.just("best-of-n"), st.fixed_dictionaries({"n": st.integers(1, 9)})),
    st.tuples(
        st.just("beam"),
        st.builds(
            lambda keep, expand, oversample, lookahead: (
                {"width": keep * expand, "keep": keep, "oversample": oversample, "lookahead": lookahead}
            ),
            st.integers(1, 4),
            st.integers(1, 4),
            st.floats(1, 4),
            st.integers(0, 3),
        ),
    ),
    st.tuples(
        st.just("self-consistency"),
        st.fixed_dictionaries({"n": st.integers(1, 9), "vote": st.sampled_from(["majority", "weighted"])}),
    ),
    st.tuples(
        st.just("dvts"),
        st.builds(lambda n, expand: {"width": n * expand, "expand": expand}, st.integers(1, 4), st.integers(1, 4)),
    ),
    st.tuples(
        st.just("rebase"),
        st.fixed_dictionaries(
            {"width": st.integers(1, 12), "balance": st.floats(0.01, 2), "oversample": st.floats(1, 3)}
        ),
    ),
    st.tuples(
        st.just("best-first"), st.fixed_dictionaries({"expand": st.integers(1, 4), "leaf_batch": st.integers(1, 5)})
    ),
    st.tuples(
        st.just("mcts"),
        st.fixed_dictionaries(
            {
                "leaf_batch": st.integers(1, 9),
                "widen": st.floats(1, 4),
                "widen_power": st.floats(0, 1),
                "virtual_loss": st.floats(0, 3),
                "max_duplicates": st.integers(1, 6),
            }
            | {"select": st.sampled_from(["puct", "uct"]), "backup": st.sampled_from(["mean", "max", "terminal"])}
        ),
    ),
    st.tuples(
        st.just("mcts"),
        st.fixed_dictionaries(
            {
                "c_puct": st.floats(0, 4),
                "trust": st.floats(0, 9),
                "backup": st.sampled_from(["mean", "max", "product"]),
            }
        ),
    ),
    st.tuples(
        st.just("ab-mcts"),
        st.fixed_dictionaries(
            {
                "posterior": st.sampled_from(["gaussian", "beta"]),
                "rollout": st.booleans(),
                "leaf_batch": st.integers(1, 9),
                "max_duplicates": st.integers(1, 6),
                "seed": st.integers(-9, 9),
            }
        ),
    ),
    st.tuples(
        st.just("gumbel"),
        st.fixed_dictionaries(
            {
                "considered": st.integers(1, 9),
                "simulations": st.integers(1, 40),
                "oversample": st.floats(1, 3),
                "leaf_batch": st.integers(1, 9),
                "widen": st.floats(1, 4),
                "max_duplicates": st.integers(1, 6),
            }
        ),
    ),
)


class KeepsTree:
    """Passes everything on to an algorithm and remembers the tree."""

    def __init__(self, inner):
        self.inner = inner
        self.tree = None

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def tell(self, tree, expand, node):
        self.tree = tree
        return self.inner.tell(tree, expand, node)


class SortedLetters:
    def answer(self, text):
        return text or None

    def key(self, text):
        return text

    def state(self, text):
        return "".join(sorted(text))


@settings(max_examples=250, deadline=None)
@given(
    configuration=CONFIGURATIONS,
    branching=st.integers(1, 6),
    depth=st.integers(1, 5),
    early=st.floats(0, 0.5),
    seed=st.integers(0, 10_000),
    capacity=st.integers(1, 9),
    steps=st.integers(1, 120),
    states=st.booleans(),
)
def test_tree_invariants(
    fake_model_class, letters, configuration, branching, depth, early, seed, capacity, steps, states
):
    name, options = configuration
    model = fake_model_class(branching=branching, depth=depth, early=early, seed=seed, capacity=capacity)
    algorithm = KeepsTree(make_algorithm(name, options))
    task = SortedLetters() if states else letters
    events = list(run_search(algorithm=algorithm, generator=model, scorer=None, task=task, budget=Budget(steps=steps)))
    tree, end = algorithm.tree, events[-1]
    assert model.at_rest()
    assert end.reason in {"finished", "exhausted", "steps"}

    backups = [event for event in events if isinstance(event, Backup)]
    assert tree.root.visits == len(backups)
    for node in tree:
        assert node.visits >= sum(child.visits for child in node.children)
        ordinals = [child.ordinal for child in node.children]
        assert len(set(ordinals)) == len(ordinals)
        assert not algorithm.ordered or ordinals == sorted(ordinals)
        assert all(child.parent is node and child.depth == node.depth + 1 for child in node.children)
        assert node.live == [child for child in node.children if child.state in ("open", "expanded")]
        assert len(node.children) + sum(child.copies - 1 for child in node.children) <= node.asked or states
        assert node.mass <= 1 + 1e-9 or not algorithm.merges
        assert node.virtual >= 0
        if node.children and algorithm.merges:
            assert abs(sum(child.prior for child in node.children) - 1) < 1e-9
            keys = [(child.text, child.finish) for child in node.children]
            assert len(set(keys)) == len(keys)
        if node.state == "closed":
            gone = ("closed", "terminal", "pruned") if name == "gumbel" else ("closed", "terminal")
            assert all(child.state in gone for child in node.children)
    if states and algorithm.merges:
        names = [task.state(node.path_text) for node in tree if node.terminal is None and node.parent]
        assert len(set(names)) == len(names)

    answered = [node for node in tree.terminals if node.answer is not None]
    if answered and name != "self-consistency" and options.get("backup") != "product":
        assert end.reward == max(node.reward for node in answered)
        assert tree[end.best].terminal


@settings(max_examples=120, deadline=None)
@given(
    configuration=CONFIGURATIONS,
    branching=st.integers(1, 6),
    depth=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    paces=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    nodes=st.integers(1, 60),
)
def test_neither_capacity_nor_pace_changes_the_tree(
    fake_model_class, letters, configuration, branching, depth, seed, sizes, paces, nodes
):
    name, options = configuration
    found = []
    for capacity, slowest in zip(sizes, paces, strict=True):
        model = fake_model_class(branching=branching, depth=depth, seed=seed, capacity=capacity, slowest=slowest)
        algorithm = make_algorithm(name, options)
        # An unordered algorithm fills a cut-short budget in the order of arrival, so it gets to its end.
        budget = Budget(nodes=nodes) if algorithm.ordered else Budget()
        events = list(run_search(algorithm=algorithm, generator=model, scorer=None, task=letters, budget=budget))
        found.append(({event.id: event for event in events if isinstance(event, NodeAdded)}, events[-1].best))
    assert found[0] == found[1]
