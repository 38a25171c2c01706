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
    """Frozen layers are run once for each sentence, and remembered while they stay frozen.

    per_process: how many of the sentences an epoch asks for in this process.
    """

    def __init__(
        self,
        model,
        ids: list[list[int]],
        per_process: int,
        autocast: Callable[[], AbstractContextManager],
        enabled: bool = True,
    ) -> None:
        self.model = model
        self.known: tuple[list[int], list] | None = None
        self.prefix = FrozenPrefix(model, ids, per_process, autocast) if enabled else None

    def begin_step(self, learning: list[Tensor], worth_it: bool) -> None:
        """Fill the cache if other parameters learn than before, and it pays.

        learning: what learns now.
        """
        if self.prefix is None:
            return
        now = [id(parameter) for parameter in learning], self.prefix.writes()
        if now != self.known:
            self.known = now
            self.prefix.update(worth_it)

    def state_dict(self) -> dict[str, int]:
        """What a run that goes on must know, to fill the cache where the first one did."""
        prefix = self.prefix
        return {} if prefix is None else {"in_vain": prefix.in_vain, "answers": prefix.answers}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up what `state_dict` gave."""
        if self.prefix is not None:
            self.prefix.in_vain = bool(state["in_vain"])
            self.prefix.answers_before = state["answers"]

    def view(self, rows: list[int], inputs: tuple[Tensor, Tensor]) -> nn.Module:
        """The module to call for these rows: the model, or a view that skips what is cached."""
        return self.model if self.prefix is None else self.prefix.view(rows, inputs)

    def give_back(self, view: nn.Module) -> None:
        """After the view's forward: attributes that it has set are the model's."""
        if self.prefix is not None:
            self.prefix.give_back(view)
