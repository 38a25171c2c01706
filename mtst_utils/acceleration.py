"""What makes the same training faster; `fit(..., acceleration=False)` does without.

Nothing here alters the caller's model: the cache works on a view of it, dropout within a context.
Taught in notebook 03, section 3.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from mtst_utils.fast_cpu import QuickDropout
from mtst_utils.frozen_prefix import FrozenPrefix


class Acceleration:
    """Two things: frozen layers are run once and remembered; a CPU draws its dropout masks quickly."""

    def __init__(
        self,
        model,
        ids: list[list[int]],
        autocast: Callable[[], AbstractContextManager],
        enabled: bool = True,
    ) -> None:
        self.model, self.prefix, self.stage = model, None, None
        self.quick_dropout = enabled and model.encoder.backbone.device.type == "cpu"
        if enabled:
            self.prefix = FrozenPrefix(model, ids, autocast)

    def begin_step(
        self, learning: list[nn.Parameter], unchanged: int, steps_per_epoch: int
    ) -> None:
        """learning: what learns now; unchanged: for how many steps nothing is frozen or unfrozen."""
        stage = [id(parameter) for parameter in learning], unchanged
        if self.prefix is not None and stage != self.stage:
            self.stage = stage
            # Filling costs as much as an epoch without the cache: it must last for longer than that.
            self.prefix.update(worth_it=unchanged > steps_per_epoch)

    def view(self, rows: list[int], inputs: tuple[Tensor, Tensor]) -> nn.Module:
        """The module to call for these rows: the model, or a view of it that skips what is cached."""
        return self.model if self.prefix is None else self.prefix.view(rows, inputs)

    def dropout(self) -> AbstractContextManager:
        """To be on for forward and backward pass."""
        return QuickDropout() if self.quick_dropout else nullcontext()
