"""One character, one token. Six roles come first; the order is that of the shipped tokenizer."""

from __future__ import annotations

from pathlib import Path

PAD, BOS, EOS, PRM, GOOD, BAD = range(6)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<prm>", "<+>", "<->")
CHARACTERS = "0123456789 =+-*/()\n"
TOKENS = (*SPECIAL_TOKENS, *CHARACTERS)
VOCABULARY_SIZE = len(TOKENS)
DIGIT_0 = TOKENS.index("0")
SPACE, EQUALS, PLUS, MINUS, TIMES, DIVIDE, OPEN, CLOSE, NEWLINE = (TOKENS.index(c) for c in " =+-*/()\n")


def decode(tokens: list[int]) -> str:
    return "".join(TOKENS[token] for token in tokens)


def write_tokenizer(directory: Path, max_positions: int) -> None:
    """`tokenizer.json` and its configuration for AutoTokenizer: characters in order, `<bos>` put first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=list(SPECIAL_TOKENS[3:]),
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )
    fast.save_pretrained(directory)
