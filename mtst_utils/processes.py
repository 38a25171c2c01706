"""One process or several: who takes which rows of a batch, and how gradients become one.

Taught in notebook 02, section 2.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# What accelerate can be asked for that leaves each process a piece of the model.
PIECES = "FSDP", "DEEPSPEED", "MEGATRON_LM"


class Processes:
    """rank, size: this process's number and how many there are; device: where it computes.

    A single process needs nothing of accelerate but its device: no model is wrapped, no setting
    kept. Of several, each holds the whole model. Raises ValueError if accelerate is asked to cut it
    into pieces.
    """

    def __init__(self) -> None:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        known = {**PartialState._shared_state}
        state = PartialState(cpu=on_cpu)
        self.rank, self.size, self.device = state.process_index, state.num_processes, state.device
        self.is_main = state.is_main_process
        self._learning_ids: list[int] | None = None
        if self.size > 1:
            _refuse_pieces()
        elif not known:  # accelerate would keep the device for whatever comes after this training
            PartialState._shared_state.clear()

    def wrapped(
        self,
        module: nn.Module,
        autocast: Callable[[], AbstractContextManager],
        learning: list[nn.Parameter],
    ) -> Callable:
        """The module to call; of several processes' the gradients of what learns are averaged.

        Made anew when other parameters learn than before.
        """
        if self.size == 1 or not learning:
            return _WithPrecision(module, autocast)
        learning_ids = [id(parameter) for parameter in learning]
        if learning_ids != self._learning_ids:
            self._learning_ids = learning_ids
            # Each has parts without a gradient: a task it has no label of, the backbone's pooler.
            self._wrapped = DistributedDataParallel(
                _WithPrecision(module, autocast), find_unused_parameters=True
            )
        return self._wrapped

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return values if self.size == 1 else reduce(values, "mean")


def _refuse_pieces() -> None:
    """They would take the place of the parameters in the caller's model and optimizer."""
    for kind in PIECES:
        # Accelerate goes by the same names, and sets them when it is given a plugin.
        name = f"ACCELERATE_USE_{kind}"
        if os.environ.get(name, "").lower() == "true":
            raise ValueError(
                f"fit trains the whole model in every process, not a piece of it, as {kind} does: "
                f"start them without it (unset {name}, or accelerate launch --multi_gpu)"
            )


class _WithPrecision(nn.Module):
    """A module called in the precision `fit` was asked for, whatever is wrapped around it."""

    def __init__(self, module: nn.Module, autocast: Callable[[], AbstractContextManager]) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, *inputs, **options) -> object:
        with self.autocast():
            return self.module(*inputs, **options)
