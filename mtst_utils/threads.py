"""No more threads than a container, or whoever shares out the machine, grants this process.

torch starts a thread for every processor it sees. Where a quota grants the time of fewer, they are
stopped in turn, and each waits for all the others.
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

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
    # Only where the system has affinities: elsewhere torch's own number stands.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else math.inf
    allowed = min(processors, _own_quota(), torch.get_num_threads())
    return max(1, math.ceil(allowed))


@lru_cache(maxsize=1)  # a container's is set before anything runs in it
def _own_quota() -> float:
    return quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))


def quota(groups: Path, mounted: Path) -> float:
    """Processors whose time Linux's control groups grant: the least on the way from one's own group
    up to the root; infinite if there is no limit, or no such file.

    groups: a file as /proc/self/cgroup; mounted: a folder as /sys/fs/cgroup, in version 2
    (cpu.max) or 1 (cpu.cfs_quota_us).
    """
    least = math.inf
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)  # "0::/a/b" in version 2
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / controllers
        # In a container the path may be the host's, of which only the root is mounted here.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            least = min(least, _limit(folder))
            if folder == root:
                break
    return least


def _limit(folder: Path) -> float:
    """Of one group: time granted a period, by the period."""
    with contextlib.suppress(OSError, ValueError):  # no such file; "max" and -1 are no limit
        if (folder / "cpu.max").is_file():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if int(granted) > 0:
            return int(granted) / int(period)
    return math.inf


@lru_cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)
