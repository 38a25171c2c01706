"""Checks of what a caller gives.

What is raised is one sentence that names the argument, its value, and what is accepted.
"""

import sys
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


def number(name: str, value: Any, accepted: str, holds: Callable[[float], bool]) -> Any:
    """Check a number, and give it as Python's own: NumPy's would overflow, or fit in no file.

    accepted: what is accepted, in words, for the message. Raises TypeError for what is no number,
    ValueError where `holds(value)` is false, as it is for NaN.
    """
    return _checked(Real, name, value, f"a number {accepted}", holds)


def whole(name: str, value: Any, accepted: str, holds: Callable[[int], bool]) -> Any:
    """As `number`, for a whole number."""
    return _checked(Integral, name, value, f"a whole number {accepted}", holds)


def instance(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Raises TypeError for a value that is not of a kind (a class, or several)."""
    if not isinstance(value, kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        given = (
            f"the class {value.__name__}"
            if isinstance(value, type)
            else f"{value!r:.60} of type {type(value).__name__}"
        )
        raise TypeError(f"{name} must be of type {kinds}; got {given}")


def items(name: str, value: Any) -> list:
    """The elements of what can be gone through. Raises TypeError for what cannot."""
    try:
        return list(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a list; got {value!r:.60} ({error})") from error


def plain(value: Any) -> Any:
    """A scalar of NumPy's or torch's as Python's own: a file can hold it. Else the value itself."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _checked(kind: type, name: str, value: Any, accepted: str, holds: Callable[..., bool]) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(
            f"{name} must be {accepted}; got {value!r:.60} of type {type(value).__name__}"
        )
    value = plain(value)
    if not holds(value):
        raise ValueError(f"{name} must be {accepted}; got {value!r}")
    return value


def rate(name: str, value: Any) -> Any:
    """A learning rate, or a decay of one.

    A smaller one would teach nothing, and over many layers come to zero.
    """
    return number(name, value, "above 1e-9 and at most 1", lambda v: 1e-9 < v <= 1)


def fraction(name: str, value: Any) -> Any:
    """A fraction that leaves something: dropout, weight decay, a part of the steps."""
    return number(name, value, "from 0 to below 1", lambda v: 0 <= v < 1)


def warn(message: str) -> None:
    """A UserWarning that points at the line outside of this package from which it was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
