"""The frozen-prefix cache: what lies below the lowest layer that learns is run once per sentence, and kept.

Taught in notebook 03, section 3.
"""

import contextlib
import warnings

import psutil
import torch
from torch.nn.utils.rnn import pad_sequence

from mtst_utils.encoder import batches_by_tokens, eval_mode
from mtst_utils.freezing import is_frozen
from mtst_utils.layers import LAYOUTS, layer_stack

MEMORY = 0.5  # the most the cache may take, as a share of the memory that is free when it is filled; 0 switches it off
# Only a backbone frozen as a whole is cached here: ALBERT runs its few blocks again and again, and in DeBERTa the
# convolution after block 0 reads the embeddings once more.
WHOLE_ONLY = ("albert", "deberta-v2")


class FrozenPrefix:
    """The hidden states [T, H] that enter the lowest learning block, or the embeddings [H] if no block learns.

    Used by `fit` on its own. A layer counts as frozen if `freeze` was called on it (so that it is in eval mode too) and
    none of its parameters requires a gradient. Without a cache, sentences are run as always.
    """

    def __init__(self, model, ids, half):
        self.model, self.ids, self.half = model, ids, half
        self.encoder, self.kind = model.encoder, model.encoder.backbone.config.model_type
        self.depth, self.rows = 0, None
        self.stack = layer_stack(self.encoder.backbone) if self.kind in LAYOUTS else ()

    def update(self, wanted=True):
        """Fill the cache if a prefix is frozen, or frozen up to another depth than before, and `wanted`."""
        depth = 0
        while depth < len(self.stack) and _frozen(self.stack[depth]):
            depth += 1
        if depth < len(self.stack) and self.kind in WHOLE_ONLY:
            depth = 0
        if depth == self.depth and self.rows is not None:
            return
        self.depth, self.rows = depth, None
        if depth and wanted and MEMORY and self._fits():
            self._fill()

    def _fits(self):
        width = self.encoder.dimension * 4
        needed = width * (len(self.ids) if self.depth == len(self.stack) else sum(map(len, self.ids)))
        device = self.encoder.backbone.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if needed > MEMORY * free:
            warnings.warn(f"the frozen layers' outputs would take {needed / 2**30:.1f} GiB, more than {MEMORY:.0%} of the "
                          f"{free / 2**30:.1f} GiB that are free: training without a cache, which is slower", stacklevel=4)  # fmt: skip
        return needed <= MEMORY * free

    def _fill(self):
        self.rows = [None] * len(self.ids)
        with torch.no_grad(), eval_mode(self.model), self.half:
            for batch in batches_by_tokens([len(row) for row in self.ids], token_budget=1024):
                inputs = self.encoder.collate([self.ids[i] for i in batch])
                if self.depth == len(self.stack):
                    self.rows = _filled(self.rows, batch, self.encoder(*inputs), len(self.ids))
                    continue
                for i, states in zip(batch, self._states(*inputs), strict=True):
                    self.rows[i] = states[: len(self.ids[i])].clone()

    def _states(self, input_ids, attention_mask):
        """What enters the lowest learning block [B, T, H]; nothing above it is run."""

        def stop(module, arguments, options):
            raise _Reached(arguments[0] if arguments else options["hidden_states"])

        handle = self.stack[self.depth].modules[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.encoder.backbone(input_ids=input_ids, attention_mask=attention_mask)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()

    @contextlib.contextmanager
    def instead_of_running(self, batch):
        """Within it, the model takes what lies below from the cache; gives the inputs its forward must be called with."""
        if self.rows is None:
            yield self.encoder.collate([self.ids[i] for i in batch])
        elif self.depth == len(self.stack):
            with _answering(self.encoder, self.rows[torch.tensor(batch)]):
                yield None, None
        else:
            states = pad_sequence([self.rows[i] for i in batch], batch_first=True)
            embeddings, blocks = self.stack[0].modules[0], self.encoder.backbone.get_submodule(LAYOUTS[self.kind][0])
            everything = blocks._modules
            blocks._modules = {name: block for name, block in everything.items() if int(name) >= self.depth - 1}
            try:
                with contextlib.ExitStack() as stubs:
                    for module in self.stack[0].modules:
                        if module is embeddings or module is getattr(self.encoder.backbone, "embeddings_project", None):
                            stubs.enter_context(_answering(module, states))
                    yield self.encoder.collate([self.ids[i] for i in batch])
            finally:
                blocks._modules = everything


class _Reached(Exception):
    def __init__(self, states):
        self.states = states


def _frozen(layer):
    return all(map(is_frozen, layer.modules)) and not any(p.requires_grad for p in layer.parameters.values())


def _filled(rows, batch, values, count):
    """Rows of a matrix that is made when the first values, and with them its type, are known."""
    matrix = rows if isinstance(rows, torch.Tensor) else values.new_empty(count, *values.shape[1:])
    matrix[batch] = values
    return matrix


@contextlib.contextmanager
def _answering(module, value):
    """Let a module return a value instead of running."""
    module.forward = lambda *arguments, **options: value
    try:
        yield
    finally:
        del module.forward
