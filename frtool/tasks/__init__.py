"""What a prompt is about: puzzles, their step text, and where an answer stands."""
