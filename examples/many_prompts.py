"""Many prompts in one decode batch, with one model that stays loaded.

Run it with `python examples/many_prompts.py`.
"""

from __future__ import annotations

import frtool


def main() -> list[frtool.SearchResult]:
    """The results, in the order in which they were done."""
    model = frtool.load_model("embedded")
    prompts = [f"Make {target} from 3, 4, 6, 9" for target in (24, 30, 36)]
    return list(frtool.search_many(prompts, model=model, algorithm="best-of-n", options={"n": 8}))


if __name__ == "__main__":
    for result in main():
        assert result.question is not None
        print(result.question.prompt, "->", result.answer, "right" if result.verified else "wrong")
