"""Which arithmetic a device is quicker at: float32 or bfloat16.

Taught in notebook 01, section 6.
"""

import logging
from functools import lru_cache

import torch


def has_quick_bfloat16(device: torch.device) -> bool:
    """True where products of matrices in bfloat16 take less time than in float32.

    Elsewhere it is emulated, or slow: with Intel's AVX-512 instructions for it, without the AMX
    that cloud machines often hide, encoding took 1.7 times as long as in float32
    (data/results/benchmarks.csv).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    quick = ["amx_bf16", "bf16", "sve_bf16"]
    if not able.get("cpu_name", "").startswith("Intel"):
        quick.append("avx512_bf16")
    return any(able.get(name) for name in quick)


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """What "float32", "bfloat16" or "auto" comes to on this device: True for bfloat16.

    "auto" logs its choice once (level INFO). Raises ValueError for any other word.
    """
    if not isinstance(precision, str) or precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"precision must be 'float32', 'bfloat16' or 'auto'; got {precision!r}")
    if precision == "auto":
        precision = "bfloat16" if has_quick_bfloat16(device) else "float32"
        speed = "quick" if precision == "bfloat16" else "slow"
        _log_once(
            f"precision='auto' is {precision} on this {device.type}, where bfloat16 is {speed}"
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
