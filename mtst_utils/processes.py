"""One process or several: who takes which rows of a batch, and how gradients become one.

Taught in notebook 02, section 2.
"""

import os
from collections.abc import Callable

import torch
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

    def share(self, model: nn.Module) -> None:
        """Every process begins with the first one's weights."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in model.state_dict().values():
                    whole = tensor.contiguous()
                    torch.distributed.broadcast(whole, 0)
                    tensor.copy_(whole)

    def averaging(self, model: nn.Module, view: nn.Module, learning: list[Tensor]) -> Callable:
        """The view, to be called: of several processes the gradients of what learns are averaged.

        model: whose parameters the view shares.
        """
        if self.size == 1 or not learning:
            return view
        learning_ids = [id(parameter) for parameter in learning]
        if learning_ids != self._learning_ids:
            self._learning_ids = learning_ids
            # Each has parts without a gradient: a task it has no label of, the backbone's pooler.
            options = {"find_unused_parameters": True, "init_sync": False}  # shared already
            self._averaging = DistributedDataParallel(_Calls(model), **options)
        self._averaging.module.view = (view,)
        return self._averaging

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


class _Calls(nn.Module):
    """A model's parameters, and a view of it that is called: another one every time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.view = model, (model,)  # in a tuple, so that it is no part of this one

    def forward(self, *inputs, **options) -> object:
        return self.view[0](*inputs, **options)
