"""Accuracy of searches over sets of problems: tasks, runs, statistics, reports."""
