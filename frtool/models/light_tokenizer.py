"""The embedded model's tokenizer with what a search asks of a transformers tokenizer, and nothing more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SpecialToken:
    content: str
    special: bool = True


class LightTokenizer:
    """Reads `tokenizer.json` and `tokenizer_config.json` of `directory`. Raises OSError or ValueError for bad files."""

    chat_template = None
    unk_token_id = None

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        text = (directory / "tokenizer.json").read_text(encoding="utf-8")
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        try:
            self.backend_tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizer.json: {error}") from None
        added = json.loads(text)["added_tokens"]
        self.added_tokens_decoder = {int(t["id"]): SpecialToken(t["content"]) for t in added if t["special"]}
        self.all_special_ids = sorted(self.added_tokens_decoder)
        self.bos_token: str = settings["bos_token"]
        ids = {token.content: index for index, token in self.added_tokens_decoder.items()}
        self.bos_token_id, self.eos_token_id = ids[self.bos_token], ids[settings["eos_token"]]

    def __len__(self) -> int:
        size: int = self.backend_tokenizer.get_vocab_size()
        return size

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text
