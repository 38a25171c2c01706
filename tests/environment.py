"""What the tests, and the kernels of the notebooks' tests, find in their environment.

A plugin of pytest, named in pyproject.toml: a conftest.py may come after torch was imported, and
not at all where only notebooks are asked for.
"""

import os

# Beside other jobs a thread that waits must sleep: spinning, it holds up those it waits for.
os.environ |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
# What JupyterLab gives whatever is started from its cells: no test runs in a page with controls,
# and figures are drawn into files.
for name in ("JPY_SESSION_NAME", "MPLBACKEND"):
    os.environ.pop(name, None)


def pytest_configure():
    """No more threads than a container's quota allows, shared among the workers, in the notebooks'
    own loops, too.
    """
    import torch

    from mtst_utils.threads import usable_threads

    # As on a processor that has 16-bit arithmetic, or lacks it: what a machine decides by itself
    # no test may depend on.
    if wish := os.environ.get("MTST_TEST_BFLOAT16"):
        torch.cpu.get_capabilities = lambda: {"avx512_bf16": wish == "yes"}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if (usable := max(1, usable_threads() // workers)) < torch.get_num_threads():
        torch.set_num_threads(usable)
        os.environ["OMP_NUM_THREADS"] = str(usable)


def pytest_collectstart(collector):
    """Progress and one-off notices go to stderr, and differ from run to run. Unit tests turn
    warnings into errors instead.
    """
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("stderr",)
