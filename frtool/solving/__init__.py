"""From a configuration to searches that can run: the problem, the model and its judges, one search or many at once."""
