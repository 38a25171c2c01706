"""No more threads than a container, or whoever shares out the machine, grants this process.

torch starts a thread for every processor it sees. Where a quota grants the time of fewer, they are
stopped in turn, and each waits for all the others.
"""

import contextlib
import logging
from collections.abc import Iterator
from functools import lru_cache

import joblib
import torch


@contextlib.contextmanager
def within_quota() -> Iterator[None]:
    """Inside, torch uses `usable_threads()`, which is logged once if they are fewer; afterwards as
    many as before.
    """
    before, usable = torch.get_num_threads(), usable_threads()
    if usable == before:
        yield
        return
    _log_once(f"torch has {before} threads, and this process may use {usable}: it uses {usable}")
    torch.set_num_threads(usable)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_threads() -> int:
    """torch's number of threads, or fewer: what the processors that this process may run on
    (affinity) and its container's quota allow. At least 1.
    """
    return min(torch.get_num_threads(), joblib.cpu_count())


@lru_cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)
