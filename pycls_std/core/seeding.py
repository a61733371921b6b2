"""Seed every generator in use from a key such as (seed, epoch) or (seed, view, index)."""

import random
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def seed_all(*key: int) -> None:
    """Seed random, numpy and torch (all devices) from a key."""
    first, second = _seeds(key)
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(first)


def seed_torch(*key: int) -> None:
    """Seed torch (all devices) alone from a key."""
    torch.manual_seed(next(_seeds(key)))


@contextmanager
def seeded(*key: int):
    """Seed random, numpy and torch's CPU generator from a key, and restore their states afterwards.

    In a DataLoader worker they are not restored: nothing else draws there, and saving costs more than seeding.
    """
    states = None if get_worker_info() else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    first, second = _seeds(key)
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(first)
    try:
        yield
    finally:
        if states:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


def _seeds(key):
    # with its length, since SeedSequence treats (3,) and (3, 0) alike
    return map(int, np.random.SeedSequence((len(key), *key)).generate_state(2))
