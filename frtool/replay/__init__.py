"""A recorded search once more: played, run again, or held against another."""
