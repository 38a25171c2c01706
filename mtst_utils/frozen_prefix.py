"""The frozen-prefix cache: what lies below the lowest layer that learns is run once per sentence.

Taught in notebook 03, section 3.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial

import psutil
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mtst_utils import checks
from mtst_utils.encoder import SentenceEncoder, batches_by_tokens, eval_mode
from mtst_utils.layers import LAYOUTS, Layer, LayerStack, layer_stack

MEMORY = 0.5  # the most the cache may take, as a share of the memory that is free when it is filled
# Where blocks can be left out: each is run once, reads only the one below, and nothing follows the
# last. Not in ALBERT; not in DeBERTa, whose convolution reads the embeddings again; not in
# ModernBERT, which normalises at the end; nor in who knows what else. Of these a backbone is cached
# only where it is frozen as a whole.
IN_PARTS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet")
OF_THE_VIEW = ("_modules", "forward", "_forward_hooks", "_forward_pre_hooks")
# The modules that give a backbone's first hidden states.
INPUTS = ("embeddings", "embeddings_project")


class FrozenPrefix:
    """What enters the lowest learning block, remembered for every sentence.

    Hidden states [T, H] a sentence, or its embedding [H] if no block learns.

    `view` is a model to call in place of the caller's: a shallow copy that shares every parameter,
    and whose encoder answers from the cache. The caller's model is never touched, and the view's
    own `forward` (a subclass's, say) sees the same arguments as ever.

    A layer counts as frozen if none of its parameters requires a gradient and all of it stays in
    eval mode when the model trains, as `freeze` leaves it: with dropout, no cache could stand for
    it.
    """

    def __init__(
        self,
        model,
        ids: list[list[int]],
        per_process: int,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model, self.ids, self.autocast = model, ids, autocast
        self.per_process = per_process  # of these sentences, in an epoch
        self.kind = model.encoder.backbone.config.model_type
        self.depth = 0
        self.cached: Tensor | list[Tensor] | None = None
        self.written: list[tuple] = []
        self.answers, self.in_vain = 0, False
        self.answers_before = 0  # an interruption
        self.batch: tuple[list[int], tuple[Tensor, ...]] = [], ()

    @cached_property
    def stack(self) -> LayerStack:
        """The backbone's layers; none where its layout is not stated."""
        try:
            return layer_stack(self.model.encoder.backbone)
        except ValueError:  # an architecture, or a part of it, whose place is not stated
            return LayerStack()

    def update(self, worth_it: bool) -> None:
        """Fill the cache if something is frozen, and it pays.

        One that is filled up to the same depth, with the same weights, is kept. After one that was
        thrown away before every sentence was asked for once there is none: it would be again, as
        where layers take turns.
        """
        depth, written = self._frozen_depth(), self.writes()
        if (depth, written) == (self.depth, self.written) and self.cached is not None:
            return
        self.in_vain |= self.cached is not None and self.answers < self.per_process
        self.depth, self.written, self.cached = depth, written, None
        self.answers, self.answers_before = self.answers_before, 0
        if depth and worth_it and not self.in_vain and self._fits():
            self._fill()

    def writes(self) -> list[tuple]:
        """Which frozen weights the encoder has, and how often each was written to: torch counts it.

        And how it pools.
        """
        encoder = self.model.encoder
        frozen = (p for p in encoder.parameters() if not p.requires_grad)
        weights = [(id(p), 0 if p.is_inference() else p._version) for p in frozen]
        return [*weights, (encoder.pooling, encoder.normalize)]

    def view(self, rows: list[int], inputs: tuple[Tensor, Tensor]) -> nn.Module:
        """The module to call with these rows' inputs: the model itself where nothing is cached."""
        if self.cached is None:
            return self.model
        self.batch = rows, (inputs[0].clone(), inputs[1].clone())  # a forward may write into them
        self.answers += len(rows)
        encoder, whole = _twin(self.model.encoder), isinstance(self.cached, Tensor)
        encoder = _without_hooks(encoder) if whole else encoder
        encoder.forward = self._answer
        return _twin(self.model, encoder=encoder)

    def give_back(self, view: nn.Module) -> None:
        """What a subclass's forward has set on the view, it has set on the model."""
        if view is not self.model:
            for twin, own in ((view.encoder, self.model.encoder), (view, self.model)):
                kept = {name: v for name, v in vars(twin).items() if name not in OF_THE_VIEW}
                vars(own).update(kept)

    def _answer(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The encoder's embeddings [B, H] from the cache, for the sentences of the batch."""
        encoder, (rows, known) = self.model.encoder, self.batch
        given, cached = (input_ids, attention_mask), self.cached
        asked = token_type_ids is None and all(map(torch.equal, given, known))
        if cached is None or not asked:
            # Sentences of the model's own choice. (The view has the encoder's hooks, or none.)
            whole = isinstance(cached, Tensor)
            forward = encoder if whole else partial(type(encoder).forward, encoder)
            return forward(*given, token_type_ids)
        if isinstance(cached, Tensor):  # all is frozen: these are the embeddings
            return cached[torch.tensor(rows)]
        states = pad_sequence([cached[i] for i in rows], batch_first=True)
        backbone = self._backbone_of(self._blocks()[self.depth - 1 :])
        for part in self._path_of(backbone):  # they have been called when the cache was filled
            part._forward_pre_hooks = OrderedDict()
        for name in INPUTS:
            if name in backbone._modules:
                backbone._modules[name] = _answering(backbone.get_submodule(name), states)
        return type(encoder).forward(_twin(encoder, backbone=backbone), input_ids, attention_mask)

    def _frozen_depth(self) -> int:
        """How many layers from the input up are frozen, as far as they can be cached."""
        depth, encoder = 0, self.model.encoder
        own_forward = type(encoder).forward is not SentenceEncoder.forward
        own_inputs = type(encoder).collate is not SentenceEncoder.collate  # other ones every time
        if own_inputs:
            return 0
        while depth < len(self.stack) and _is_fixed(self.stack[depth]):
            depth += 1
        if depth == len(self.stack):
            # Whatever an encoder of one's own adds to its backbone must not learn either.
            own_training = own_forward and encoder.training
            learns = any(p.requires_grad for p in encoder.parameters())
            return 0 if learns or own_training else depth
        return depth if self.kind in IN_PARTS and not own_forward else 0

    def _fits(self) -> bool:
        whole = self.depth == len(self.stack)
        states = len(self.ids) if whole else sum(map(len, self.ids))
        encoder = self.model.encoder
        width = encoder.dimension if whole else encoder.backbone.config.hidden_size
        needed, device = 4 * width * states, encoder.backbone.device
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        if needed > MEMORY * free:
            checks.warn(
                f"the frozen layers' outputs would take {needed / 2**30:.1f} GiB, more than "
                f"{MEMORY:.0%} of the {free / 2**30:.1f} GiB that are free: training without a "
                "cache, which is slower"
            )
        return needed <= MEMORY * free

    def _fill(self) -> None:
        encoder, cached = self.model.encoder, [torch.empty(0)] * len(self.ids)
        whole = self.depth == len(self.stack)
        with torch.no_grad(), eval_mode(self.model), self.autocast():
            for batch in batches_by_tokens([len(row) for row in self.ids], token_budget=1024):
                inputs = encoder.collate([self.ids[i] for i in batch])
                states = encoder(*inputs) if whole else self._run_below(*inputs)
                for i, row in zip(batch, states, strict=True):
                    cached[i] = row.clone() if whole else row[: len(self.ids[i])].clone()
        self.cached = torch.stack(cached) if whole else cached

    def _run_below(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What enters the lowest learning block [B, T, H]: the output of those below it alone."""
        below = self._backbone_of(self._blocks()[: self.depth - 1])
        for part in (below, *self._path_of(below)):  # they will be called when all of it is run
            part._forward_hooks = OrderedDict()
        return below(input_ids=input_ids, attention_mask=attention_mask)[0]

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        """The backbone's blocks with their names, from the input up."""
        path = LAYOUTS[self.kind][0]
        return list(self.model.encoder.backbone.get_submodule(path)._modules.items())

    def _path_of(self, backbone: nn.Module) -> list[nn.Module]:
        """What lies between a backbone and its blocks: the modules that hold them."""
        names = LAYOUTS[self.kind][0].split(".")
        return [backbone.get_submodule(".".join(names[:i])) for i in range(1, len(names) + 1)]

    def _backbone_of(self, blocks: list[tuple[str, nn.Module]]) -> nn.Module:
        """The backbone as a view that has these blocks only."""
        backbone, path = self.model.encoder.backbone, LAYOUTS[self.kind][0]
        remaining = _twin(backbone.get_submodule(path))
        remaining._modules = dict(blocks)
        return _with_part(backbone, path, remaining)


def _is_fixed(layer: Layer) -> bool:
    learns = any(parameter.requires_grad for parameter in layer.parameters.values())
    trains = any(part.training for module in layer.modules for part in module.modules())
    return not learns and not trains


def _twin(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """A shallow copy that shares parameters, buffers and parts, except those given."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **parts}
    return twin


def _without_hooks(twin: nn.Module) -> nn.Module:
    """So that nobody's hook is called a second time on what it has been called on."""
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    return twin


def _with_part(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """A view of a module in which the part at a dotted path is another one."""
    name, _, rest = path.partition(".")
    inner = _with_part(module.get_submodule(name), rest, part) if rest else part
    return _twin(module, **{name: inner})


def _answering(module: nn.Module, value: Tensor) -> nn.Module:
    """A view of a module that returns a value instead of running."""
    twin = _without_hooks(_twin(module))
    twin.forward = lambda *_, **__: value
    return twin
