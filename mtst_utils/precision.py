"""Which arithmetic a device is good at: float32, or bfloat16 where the hardware has it.

Taught in notebook 01, section 6.
"""

import logging
from functools import lru_cache

import torch


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is in the hardware.

    Elsewhere it is emulated, and very slow.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(
        able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    )


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """What "float32", "bfloat16" or "auto" comes to on this device: True for bfloat16.

    "auto" logs its choice once (level INFO). Raises ValueError for any other word.
    """
    if not isinstance(precision, str) or precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"precision must be 'float32', 'bfloat16' or 'auto'; got {precision!r}")
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
        _log_once(
            f"precision='auto' is {precision} on this {device.type}: bfloat16 is "
            + (
                "in its hardware"
                if precision == "bfloat16"
                else "not in its hardware, and would be slower"
            )
        )
    return precision == "bfloat16"


@lru_cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).info(message)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context manager for "float32", "bfloat16" or "auto" on this device.

    Raises ValueError for any other word.
    """
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=wants_bfloat16(precision, device)
    )
