"""Reproduce a table: from its file to its runs, made in order; does not import torch."""
