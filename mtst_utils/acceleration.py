"""What makes the same training faster.

`fit(..., acceleration=False)` does without, with the same losses. The caller's model is never
altered: the cache works on a view of it.
Taught in notebook 03, section 3.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from mtst_utils.frozen_prefix import FrozenPrefix


class Acceleration:
    """Frozen layers are run once for each sentence, and remembered while they stay frozen."""

    def __init__(
        self,
        model,
        ids: list[list[int]],
        autocast: Callable[[], AbstractContextManager],
        enabled: bool = True,
    ) -> None:
        self.model = model
        self.unchanged_since: tuple[list[int], int, int] | None = None
        self.prefix = FrozenPrefix(model, ids, autocast) if enabled else None

    def begin_step(
        self, learning: list[nn.Parameter], unchanged: int, steps_per_epoch: int
    ) -> None:
        """Fill the cache if other parameters learn than before, and it pays.

        learning: what learns now; unchanged: for how many steps nothing is frozen or unfrozen.
        """
        if self.prefix is None:
            return
        now = [id(parameter) for parameter in learning], unchanged, self.prefix.writes()
        if now != self.unchanged_since:
            self.unchanged_since = now
            # Filling costs as much as an epoch without the cache: it must last longer than that.
            self.prefix.update(worth_it=unchanged > steps_per_epoch)

    def view(self, rows: list[int], inputs: tuple[Tensor, Tensor]) -> nn.Module:
        """The module to call for these rows: the model, or a view that skips what is cached."""
        return self.model if self.prefix is None else self.prefix.view(rows, inputs)

    def give_back(self, view: nn.Module) -> None:
        """After the view's forward: attributes that it has set are the model's."""
        if self.prefix is not None:
            self.prefix.give_back(view)
