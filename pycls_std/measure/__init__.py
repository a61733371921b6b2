"""Describe, time and count what a run would train, without training it."""
