"""From a prompt to the token ids that the model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frtool.errors import ModelError

from .text import one_line

if TYPE_CHECKING:
    from .load import LoadedModel


def chat_prompt_ids(loaded: LoadedModel, prompt: str, system: str | None = None) -> list[int]:
    """Token ids of `prompt` as one user turn in the chat template, or as plain text after the start token without one.

    Without a template `system` is put in front as a paragraph. Raises ModelError when the template fails.
    """
    if not loaded.chat_template:
        return plain_prompt_ids(loaded, prompt if system is None else f"{system}\n\n{prompt}")
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise ModelError(f"the chat template of {loaded.name} failed: {one_line(error)}") from None
    return [int(token) for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]


def plain_prompt_ids(loaded: LoadedModel, text: str) -> list[int]:
    """Token ids of `text` behind the tokenizer's own start token, without the end token that some tokenizers append."""
    tokenizer = loaded.tokenizer
    bare = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    if len(ids) > len(bare) and ids[-1] == tokenizer.eos_token_id and bare[-1:] != ids[-1:]:
        ids.pop()
    bos = tokenizer.bos_token_id
    if bos is not None and getattr(tokenizer, "add_bos_token", False) and ids[:1] != [bos]:
        ids.insert(0, bos)
    return ids
