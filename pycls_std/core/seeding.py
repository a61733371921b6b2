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
    """Seed random, numpy and torch's CPU generator from a key, and put their states back afterwards.

    In a loader's worker they are left as they are: nobody else draws there, and the states cost more than the seeds.
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
    # with its length, for a sequence reads (3,) as it reads (3, 0)
    return map(int, np.random.SeedSequence((len(key), *key)).generate_state(2))
