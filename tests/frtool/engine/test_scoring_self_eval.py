"""Self-evaluation on the engine's own branches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from frtool.errors import UsageError
from frtool.scoring.self_eval import SelfEvalScorer
from frtool.search.protocols import OutOfMemory, Step
from frtool.search.tree import Node, SearchTree

ASK = "is this right? say yes or no"


class Asked:
    """A driven engine whose every step is kept and scored, with the tree that the scorer sees."""

    def __init__(self, drive: Any, loaded: Any, **options: Any) -> None:
        self.driver = drive(loaded, **options)
        self.scorer = SelfEvalScorer(loaded, ASK)
        self.scorer.attach(self.driver.engine)
        self.tree = SearchTree()
        self.values: dict[str, float] = {}

    def grow(self, parent: str, *ordinals: int) -> None:
        """Children of a node; they are scored together, as a search does."""
        self.driver.submit(parent, *ordinals)
        made: list[tuple[Node, Step]] = []
        while self.driver.engine.outstanding:
            for step in self.driver.poll():
                self.tree.want(self.tree[step.parent])
                node, _ = self.tree.make(step)
                self.driver.engine.keep(step)
                self.tree.attach(node)
                made.append((node, step))
        values = self.scorer.score([node for node, _ in made], [step for _, step in made], self.tree)
        self.values |= {node.id: value for (node, _), value in zip(made, values, strict=True)}
        self.driver.engine.allocator.check()

    def plain(self, name: str) -> float:
        """The same question at the end of one ordinary pass over the whole path."""
        tokenizer = self.driver.loaded.tokenizer
        ids = self.driver.path_ids(name) + tokenizer(f"\n\n{ASK}\n", add_special_tokens=False)["input_ids"]
        odds = self.driver.plain_logits(ids)[-1].double().exp()
        known = tokenizer.get_vocab()
        return float(odds[known["y"]] / (odds[known["y"]] + odds[known["n"]]))


def test_the_score_is_the_models_own_answer_after_the_path(drive: Any, loaded_model: Callable[..., Any]) -> None:
    asked = Asked(drive, loaded_model(max_positions=512))
    asked.grow("0", 0, 1, 2)
    opened = [name for name in asked.values if asked.tree[name].finish == "step"]
    for name in opened:
        asked.grow(name, 0, 1)
    assert len(asked.values) > 3
    for name, value in asked.values.items():
        assert value == pytest.approx(asked.plain(name), abs=1e-5), name
    assert max(asked.values.values()) - min(asked.values.values()) > 1e-3


def test_nothing_of_the_question_stays(drive: Any, loaded_model: Callable[..., Any]) -> None:
    asked = Asked(drive, loaded_model(max_positions=512))
    engine = asked.driver.engine
    asked.grow("0", 0, 1, 2)
    paths = {name: asked.driver.path_ids(name) for name in asked.values}
    assert len(engine.allocator.branch_ids) == 4
    query = len(asked.scorer.query)
    assert 3 * query <= engine.scorer_tokens <= 3 * (query + 1)
    alone = drive(loaded_model(max_positions=512))
    alone.submit("0", 0, 1, 2)
    alone.finish()
    assert {name: alone.path_ids(name) for name in paths} == paths


def test_a_full_pool_evicts_or_reads_in_parts(drive: Any, loaded_model: Callable[..., Any]) -> None:
    roomy = Asked(drive, loaded_model(max_positions=512))
    tight = Asked(drive, loaded_model(max_positions=512), num_blocks=15)
    for asked in (roomy, tight):
        asked.grow("0", 0, 1, 2, 3)
    assert tight.values == pytest.approx(roomy.values, abs=1e-6)


def test_a_pool_without_room_for_one_question_ends_the_search(drive: Any, loaded_model: Callable[..., Any]) -> None:
    asked = Asked(drive, loaded_model(max_positions=512), num_blocks=8)
    with pytest.raises(OutOfMemory, match="scoring a path"):
        asked.grow("0", 0)
    asked.driver.engine.allocator.check()


def test_a_path_that_leaves_no_position_for_the_question_is_worth_nothing(
    drive: Any, loaded_model: Callable[..., Any]
) -> None:
    asked = Asked(drive, loaded_model(max_positions=50))
    asked.grow("0", 0)
    assert set(asked.values.values()) == {0.0}


def test_a_model_without_a_word_for_yes_is_refused(
    loaded_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_model()
    monkeypatch.setattr("frtool.scoring.self_eval._YES", ("<eos>",))
    with pytest.raises(UsageError, match="cannot be asked"):
        SelfEvalScorer(loaded, ASK)


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        ({"Yes": [5], " yes": [9, 6], "YES": [7, 8], "No": [10], "no": [11]}, ([5], [10, 11])),
        ({"Yes": [9, 5], "yes": [6, 7], "No": [9, 10], "no": [11, 7]}, ([6], [11])),
        ({"Yes": [5], "No": [10], "no": [99]}, ([5], [10])),
    ],
)
def test_words_that_are_one_token_count_before_beginnings(
    words: dict[str, list[int]], labels: tuple[list[int], list[int]]
) -> None:
    class Words:
        all_special_ids = (0,)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": words.get(text, [1, 2] if text.startswith("\n") else [])}

    loaded: Any = SimpleNamespace(tokenizer=Words(), chat_template=False, vocab_size=50, name="stub")
    assert SelfEvalScorer(loaded).labels == labels
