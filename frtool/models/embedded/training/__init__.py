"""How the embedded model is trained. Nothing here is imported by a search.

`python -m frtool.models.embedded.training.train --help`; the card beside the weights says what was run.
"""
