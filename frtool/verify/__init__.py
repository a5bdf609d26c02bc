"""Verifiers: rules outside the model that say whether an answer is right."""
