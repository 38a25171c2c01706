"""Dropout whose masks a CPU draws quickly.

Found with a profiler: with small models and short sentences, drawing masks took up to a quarter of
a training step in bfloat16. `load_backbone` and `MultiTaskModel` build their models with this
module.
"""

import torch
from torch import Tensor, nn


class QuickDropout(nn.Dropout):
    """nn.Dropout whose mask is cut from 64-bit random words, four elements each.

    p is exact to 1/65536. On other devices, in place, and for p = 1 it is nn.Dropout itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        quick = self.training and 0 < self.p < 1 and not self.inplace and input.device.type == "cpu"
        if not quick:
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        numbers = words.view(torch.int16)[: input.numel()].view(input.shape)
        keep = numbers >= round(self.p * 65536) - 32768
        return input * keep.to(input.dtype).mul_(1 / (1 - self.p))


def use_quick_dropout(module: nn.Module) -> None:
    """Put a QuickDropout in the place of every nn.Dropout.

    For a module that nobody else holds yet.
    """
    for parent in module.modules():
        for name, part in parent.named_children():
            if type(part) is nn.Dropout:
                setattr(parent, name, QuickDropout(part.p, part.inplace))
