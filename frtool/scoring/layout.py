"""From a path of steps to the tokens that a reward model reads, by its preset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frtool.errors import ModelError, UsageError
from frtool.models.prompt import plain_prompt_ids
from frtool.models.text import one_line

from .preset import RewardPreset

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


class PathLayout:
    """Lays the question and the steps of a path out as the preset says, up to the token where the value is read.

    What a model writes is data: a step that spells the step tag is laid out without it.
    """

    def __init__(self, preset: RewardPreset, loaded: LoadedModel, question: str) -> None:
        """Raises ModelError where the preset does not fit the model's tokenizer, UsageError for an empty question."""
        self._preset = preset
        self._loaded = loaded
        if not question.strip():
            raise UsageError("the question for the reward model is empty")
        bos = loaded.tokenizer.bos_token or ""
        self._prompt = preset.prompt.replace("{bos}", bos).replace("{question}", question)
        self._tag = self._last(preset.step_tag)
        self._good = self._last(preset.good_token)
        if preset.layout in ("chat", "turns") and not loaded.chat_template:
            raise ModelError(
                f"{loaded.name} has no chat template, which the preset {preset.name} needs",
                hint="pass another --reward-preset",
            )
        if preset.head == "lm":
            bad = self._last(preset.bad_token)
            if self._good == bad:
                raise self._misfit("its good and bad token are one and the same")
            self.labels = (self._good, bad)
        self.root = self._question_ids()
        """Tokens that every path begins with."""

    def ids(self, steps: Sequence[str]) -> list[int]:
        """Tokens of the path; the value is read at the last one. Those that the model has no embedding for are left
        out: a tokenizer may know more than its model."""
        known = self._loaded.vocab_size
        ids = self._lay_out(steps)
        return ids if max(ids) < known else [token for token in ids if token < known]

    def _lay_out(self, steps: Sequence[str]) -> list[int]:
        preset = self._preset
        texts = [step.strip() for step in steps]
        if preset.layout == "pieces":
            return self._pieces(texts)
        bare = preset.step_tag.strip()
        if bare:
            texts = [text.replace(bare, "") for text in texts]
        if preset.layout == "turns":
            return self._turns(texts)
        tagged = preset.joiner.join(text + preset.step_tag for text in texts)
        if preset.layout == "text":
            ids = plain_prompt_ids(self._loaded, self._prompt + tagged)
            if preset.read_at == "tag" and ids[-1] != self._tag:
                # The step ends in what melts with the tag into another token.
                ids = [*plain_prompt_ids(self._loaded, self._prompt + tagged.removesuffix(preset.step_tag)), self._tag]
            return ids
        messages = [{"role": "user", "content": self._prompt}, {"role": "assistant", "content": tagged}]
        ids = self._chat(messages)
        # The template closes the last turn; what stands behind the read-out cannot change it.
        return ids[: self._last_index(ids, self._tag) + 1]

    def _question_ids(self) -> list[int]:
        """What two paths that differ from their first character on have in common; this also tries the layout."""
        one, other = self.ids(["0 = 0"]), self.ids(["x is x"])
        if self._preset.layout == "text" and self._preset.read_at == "tag":
            whole = plain_prompt_ids(self._loaded, self._prompt + "0 = 0" + self._preset.step_tag)
            if whole[-1] != self._tag:
                raise self._misfit("its step tag does not end in a token of its own")
        return one[: common_prefix(one, other)]

    def _pieces(self, steps: list[str]) -> list[int]:
        ids = self._encode(self._prompt)
        tag = self._preset.step_tag
        for step in steps:
            for line in step.split(tag) if tag else [step]:
                ids += self._encode(line)
                if tag:
                    ids.append(self._tag)
        return ids

    def _turns(self, steps: list[str]) -> list[int]:
        messages = []
        for index, step in enumerate(steps):
            messages.append({"role": "user", "content": self._prompt + step if index == 0 else step})
            messages.append({"role": "assistant", "content": self._preset.good_token})
        ids = self._chat(messages)
        return ids[: self._last_index(ids, self._good)]

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        tokenizer = self._loaded.tokenizer
        if self._preset.system:
            messages = [{"role": "system", "content": self._preset.system}, *messages]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        except Exception as error:
            raise ModelError(f"the chat template of {self._loaded.name} failed: {one_line(error)}") from None
        return self._encode(text)

    def _last_index(self, ids: list[int], token: int) -> int:
        for index in range(len(ids) - 1, -1, -1):
            if ids[index] == token:
                return index
        raise self._misfit("the token at which it reads does not occur in its text")

    def _last(self, text: str) -> int:
        """Id of the last token of `text`, -1 for none."""
        ids = self._encode(text) if text else []
        if ids and (ids[-1] == self._loaded.tokenizer.unk_token_id or ids[-1] >= self._loaded.vocab_size):
            raise self._misfit(f"its token {text!r} is none of the model's")
        return ids[-1] if ids else -1

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self._loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _misfit(self, why: str) -> ModelError:
        return ModelError(
            f"the preset {one_line(self._preset.name, 60)} does not fit {self._loaded.name}: {why}",
            hint="pass the model's own --reward-preset",
        )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their start."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
