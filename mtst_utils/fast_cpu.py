"""Three things that make training on a CPU quicker and leave its results what they are.

All found with a profiler. With small models and short sentences, drawing dropout masks took 25 % of a step; gradient, norm
and AdamW of word vectors that do not occur in the data 12 %; and handing large buffers back to the operating system, only
to get them zeroed page by page again, 5 to 15 %.
"""

import contextlib
import ctypes

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


class WordDropout(nn.Dropout):
    """nn.Dropout whose mask is cut from 64-bit random words, four elements each; p is exact to 1/65536."""

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 65536) - 32768
        return x * keep.to(x.dtype).mul_(1 / (1 - self.p))


def word_dropout_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention as torch's scaled_dot_product_attention computes it where it must drop out, with WordDropout's masks."""
    if dropout == 0 or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = WordDropout(dropout)(scores.softmax(-1).to(value.dtype))
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("word_dropout", word_dropout_attention)
AttentionMaskInterface.register("word_dropout", sdpa_mask)


@contextlib.contextmanager
def quick_dropout(model, device):
    """Let a model's dropout layers and attention draw their masks as WordDropout does, on a CPU (a GPU has no need)."""
    layers = [part for part in model.modules() if type(part) is nn.Dropout and device.type == "cpu"]
    config = model.encoder.backbone.config
    attention = config._attn_implementation == "sdpa" and device.type == "cpu"
    for layer in layers:
        layer.__class__ = WordDropout
    if attention:
        config._attn_implementation = "word_dropout"
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Dropout
        if attention:
            config._attn_implementation = "sdpa"


def keep_large_buffers():
    """Tell glibc's malloc to keep freed memory for reuse (a no-op where the C library is another).

    What an earlier run left is given back first: scattered free memory of many runs would add up.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(-3, 2**26)  # M_MMAP_THRESHOLD: no mapping of its own for a buffer below 64 MiB
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD: up to 256 MiB of free memory are kept


class WordsInUse:
    """A context in which the table of word vectors holds only the words that occur in ids, so that only they cost anything.

    All others keep their vectors exactly (AdamW would shrink them a little, by weight decay alone). The parameter stays
    the same object; whatever looks at the model or the optimizer meanwhile must do so within `whole()`.
    """

    def __init__(self, model, ids, optimizer):
        self.table, self.optimizer = model.encoder.backbone.get_input_embeddings(), optimizer
        used = torch.zeros(self.table.num_embeddings, dtype=torch.bool)
        used[[word for row in ids for word in row] + [model.encoder.tokenizer.pad_token_id]] = True
        self.used = used.nonzero().squeeze(1).to(self.table.weight.device)
        self.place = (used.cumsum(0) - 1).to(self.table.weight.device)
        learns = type(self.table) is nn.Embedding and self.table.weight.requires_grad
        self.worth_it = learns and 2 * len(self.used) < len(used)

    def __enter__(self):
        if self.worth_it:
            shape, state = self.table.weight.shape, self.optimizer.state.get(self.table.weight, {})
            self.full = {name: value for name, value in state.items() if value.shape == shape}
            state.update({name: value[self.used] for name, value in self.full.items()})
            self._swap_in()
        return self

    def __exit__(self, *_):
        if self.worth_it:
            shape, state = self.table.weight.shape, self.optimizer.state.get(self.table.weight, {})
            self._swap_out()
            for name, value in state.items():
                if value.shape == shape:
                    state[name] = self.full.get(name, value.new_zeros(self.table.weight.shape))
                    state[name][self.used] = value

    @contextlib.contextmanager
    def whole(self):
        """For a while, the table as it is elsewhere; the optimizer's state of it stays as it is."""
        if self.worth_it:
            self._swap_out()
        try:
            yield
        finally:
            if self.worth_it:
                self._swap_in()

    def _swap_in(self):
        weight, padding = self.table.weight, self.table.padding_idx
        self.vectors, weight.data, weight.grad = weight.data, weight.data[self.used], None
        padding = None if padding is None else self.place[padding].item()
        self.table.forward = lambda words: nn.functional.embedding(self.place[words], weight, padding)

    def _swap_out(self):
        self.vectors[self.used] = self.table.weight.data
        self.table.weight.data, self.table.weight.grad = self.vectors, None
        del self.table.forward
