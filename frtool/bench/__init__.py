"""Benchmarks that run both sides in one go and name the machine."""
