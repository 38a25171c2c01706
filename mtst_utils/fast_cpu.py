"""Dropout masks that a CPU draws quickly.

Found with a profiler: with small models and short sentences, torch's masks took a quarter of a
training step in bfloat16. Nothing of the model is changed: within `with QuickDropout():` the two
functions of torch that drop out are computed in another way, and the masks are other draws of the
same distribution.
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class QuickDropout(TorchFunctionMode):
    """Within it, dropout on a CPU cuts its masks from 64-bit random words, four elements each.

    It must be on for the backward pass, too: gradient checkpointing draws its masks again there.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is dropout:
            return _dropout(*args, **kwargs)
        if function is scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if function is Tensor.backward:
            gradient = kwargs.pop("gradient", None)
            with self:  # torch leaves a mode while it handles a call
                return torch.autograd.backward(args, gradient, **kwargs)
        return function(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    quick = training and 0 < p < 1 and not inplace and input.device.type == "cpu"
    return input * _scaled_mask(input, p) if quick else dropout(input, p, training, inplace)


def _scaled_mask(x: Tensor, p: float) -> Tensor:
    """0 with probability p (exact to 1/65536), else 1 / (1 - p), in the shape and type of x."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 65536) - 32768
    return keep.to(x.dtype).mul_(1 / (1 - p))


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    """Attention with dropout as torch's own CPU code computes it; all else is left to torch."""
    plain = not is_causal and not options.get("enable_gqa") and query.device.type == "cpu"
    if dropout_p == 0 or not plain:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **options
        )
    scale = options.get("scale")
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1).to(value.dtype)
    return weights * _scaled_mask(weights, dropout_p) @ value
