"""Where steps end, on tokenizers that merge the delimiter and split characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from frtool.engine.steps import Detokenizer, StepText, tail


def run(tokenizer: Any, ids: list[int], delimiter: str, before: tuple[int, ...] = ()) -> list[str]:
    """Texts of the steps that `ids` fall into; the last may be unfinished."""
    detokenizer = Detokenizer(tokenizer)
    texts, step = [], StepText(detokenizer, delimiter, before)
    for token in ids:
        if step.push(token):
            texts.append(step.text)
            step = StepText(detokenizer, delimiter, step.tail)
    return [*texts, step.text] if step.text else texts


@pytest.fixture(scope="module")
def merging(char_tokenizer: Callable[..., Any]) -> Callable[[list[str]], tuple[Any, list[int]]]:
    tokenizer = char_tokenizer([".\n\n", "\n\nthe", "\n\n", "ab"])
    known = tokenizer.get_vocab()
    return lambda texts: (tokenizer, [known[text] for text in texts])


def test_a_step_ends_with_its_delimiter(merging: Any) -> None:
    assert run(*merging(["a", "\n", "b", "ab", "\n", "c"]), "\n") == ["a\n", "bab\n", "c"]


def test_a_delimiter_may_come_in_pieces(merging: Any) -> None:
    assert run(*merging(["a", "\n", "\n", "b", "\n", "c", "\n", "\n"]), "\n\n") == ["a\n\n", "b\nc\n\n"]


def test_a_delimiter_may_hide_inside_a_token(merging: Any) -> None:
    assert run(*merging(["a", ".\n\n", "b", "\n\nthe", " ", "c"]), "\n\n") == ["a.\n\n", "b\n\nthe", " c"]


def test_a_delimiter_may_straddle_two_tokens(merging: Any) -> None:
    assert run(*merging(["a", "\n", "\n\nthe", "b"]), "\n\n") == ["a\n\n\nthe", "b"]


def test_a_delimiter_alone_is_no_step(merging: Any) -> None:
    assert run(*merging(["\n\n", "\n", " ", "\n\n", "a", "\n\n", "\n", "b"]), "\n\n") == ["\n\n\n \n\na\n\n", "\nb"]


def test_a_delimiter_may_be_a_word(merging: Any) -> None:
    texts = run(*merging(["ab", "a", "ab", "c"]), "ab")
    assert texts == ["abaab", "c"]


def test_special_tokens_have_no_text(merging: Any) -> None:
    assert run(*merging(["a", "<pad>", "b", "<prm>", "\n", "c"]), "\n") == ["ab\n", "c"]


def test_characters_of_several_tokens_come_whole(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    text = "π≈3\n\n😀 naïve…\n\nend"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    texts = run(tokenizer, ids, "\n\n")
    assert texts == ["π≈3\n\n", "😀 naïve…\n\n", "end"]


def test_a_delimiter_of_several_bytes_is_found(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    assert run(tokenizer, tokenizer("one。two。三。")["input_ids"], "。") == ["one。", "two。", "三。"]


def test_bytes_that_are_no_text_do_not_hold_the_rest_back(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    known = tokenizer.get_vocab()
    stray = known["Ŀ"] if "Ŀ" in known else tokenizer("é")["input_ids"][1]  # a continuation byte
    ids = [stray] * 6 + tokenizer("ab\n")["input_ids"]
    (text,) = run(tokenizer, ids, "\n")
    assert text.endswith("ab\n")
    assert text.rstrip("ab\n").strip("\ufffd") == ""


def test_an_unfinished_character_shows_at_the_end(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a😀")["input_ids"]
    assert run(tokenizer, ids[:-1], "\n") == ["a\ufffd"]


def test_the_space_of_a_first_word_depends_on_what_stands_before() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {text: index for index, text in enumerate(["<s>", "▁make", "▁ten", "\n", "ish"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    detokenizer = Detokenizer(tokenizer)
    assert run(tokenizer, [1, 2, 4, 3, 2], "\n") == ["make tenish\n", " ten"]
    assert run(tokenizer, [2, 3], "\n", tail(detokenizer, [0, 1])) == [" ten\n"]
    assert run(tokenizer, [2, 3], "\n", tail(detokenizer, [0])) == ["ten\n"]


def test_random_tokens_join_to_the_decoded_path(byte_tokenizer: Callable[..., Any]) -> None:
    import random

    tokenizer = byte_tokenizer()
    draw = random.Random(0)
    alphabet = ["é", "😀", "a", "\n", "\n\n", " ", "漢"]
    for _ in range(200):
        ids = tokenizer("".join(draw.choices(alphabet, k=30)))["input_ids"]
        assert "".join(run(tokenizer, ids, "\n\n")) == tokenizer.decode(ids)
