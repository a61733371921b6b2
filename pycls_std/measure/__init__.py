"""Describe and time what a run would train, without training it."""
