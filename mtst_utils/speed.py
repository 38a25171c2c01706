"""Two things that make training on a CPU quicker and leave its results what they are.

Both found with a profiler: with small models and short sentences, drawing dropout masks took 18 % of a step, and handing
the large gradient of the embedding table back to the operating system, only to get it zeroed page by page again, 5 to 15 %.
"""

import contextlib
import ctypes

import torch
from torch import nn


class WordDropout(nn.Dropout):
    """nn.Dropout whose mask is cut from 64-bit random words, four elements each; p is exact to 1/65536."""

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 65536) - 32768
        return x * keep.to(x.dtype).mul_(1 / (1 - self.p))


@contextlib.contextmanager
def quick_dropout(model, device):
    """Let a model's dropout layers draw their masks as WordDropout does, for a while, on a CPU (a GPU has no need)."""
    layers = [part for part in model.modules() if type(part) is nn.Dropout and device.type == "cpu"]
    for layer in layers:
        layer.__class__ = WordDropout
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Dropout


def keep_large_buffers():
    """Tell glibc's malloc to keep freed memory for reuse (a no-op where the C library is another)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**26)  # M_MMAP_THRESHOLD: no mapping of its own for a buffer below 64 MiB
        mallopt(-1, 2**28)  # M_TRIM_THRESHOLD: up to 256 MiB of free memory are kept
