"""The arithmetic reasoner that comes with frtool: weights, tokenizer, card, and the script that trained it."""
