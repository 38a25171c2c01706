"""What `encode` could gain, and leaves out: one matrix product for query, key and value; for MPNet
torch's own attention; a compiled backbone. Each beside `encode` as it is, at the same precision.

python -m tests.benchmarks.variants [--backbone all-mpnet-base-v2] [--sentences 2000] [--repeats 3]
"""

import os
import sys
import time

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mtst_utils.encoder import SentenceEncoder
from mtst_utils.precision import has_quick_bfloat16
from tests.benchmarks.common import compare
from tests.benchmarks.encoding import texts

PRECISION = "bfloat16" if has_quick_bfloat16(torch.device("cpu")) else "float32"
NAMES = {"bert": ("query", "key", "value"), "mpnet": ("q", "k", "v")}


class Three(nn.Module):
    """Query, key and value in one product: the query is returned, the two others are kept."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([part.weight.detach() for part in linears]))
        self.bias = nn.Parameter(torch.cat([part.bias.detach() for part in linears]))
        self.others: list[torch.Tensor] = []

    def forward(self, states):
        query, *self.others[:] = nn.functional.linear(states, self.weight, self.bias).chunk(3, -1)
        return query


class Kept(nn.Module):
    """The key or the value that Three has kept."""

    def __init__(self, three: Three, which: int) -> None:
        super().__init__()
        self.others, self.which = three.others, which

    def forward(self, states):
        return self.others[self.which]


def one_product(backbone: nn.Module) -> None:
    names = NAMES[backbone.config.model_type]
    for part in [
        p for p in backbone.modules() if isinstance(getattr(p, names[0], None), nn.Linear)
    ]:
        three = Three([getattr(part, name) for name in names])
        for name, new in zip(names, (three, Kept(three, 0), Kept(three, 1)), strict=True):
            setattr(part, name, new)


def attended(self, hidden_states, attention_mask=None, position_bias=None, **_):
    """MPNet's attention through torch's, with its table of relative positions as a mask."""
    shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    q, k, v = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
    mask = position_bias + attention_mask
    found = scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    return (self.o(found.transpose(1, 2).flatten(2)),)


def torchs_attention(backbone: nn.Module) -> None:
    for part in backbone.modules():
        if type(part).__name__ == "MPNetSelfAttention":
            part.forward = attended.__get__(part)


def compiled(backbone: nn.Module) -> None:
    import torch._inductor.config

    torch._inductor.config.freezing = True  # weights may be packed: they never change
    backbone.forward = torch.compile(backbone.forward, dynamic=True)


def encoder_with(change):
    """An encoder of its own in this precision, so that nothing is converted on the way."""
    encoder = SentenceEncoder.from_pretrained()
    if PRECISION == "bfloat16":
        encoder.backbone.bfloat16()
    if change is not None:
        change(encoder.backbone)
    return encoder


def measured(change, first: bool = False):
    """Seconds of the second pass over the sentences; first: of the first, compiling included."""

    def run(sentences):
        encoder, asked = encoder_with(change), texts(sentences)
        for _ in range(1 if first else 2):
            started = time.perf_counter()
            encoder.encode(asked, precision=PRECISION)
        return time.perf_counter() - started

    return run


AS_IT_IS = "encode as it is"
RUNS = {
    AS_IT_IS: measured(None),
    "one product for query, key and value": measured(one_product),
    "torch's attention": measured(torchs_attention),
    "compiled": measured(compiled),
    "compiled, the first pass": measured(compiled, first=True),
}


def main() -> None:
    if "--backbone" in sys.argv:  # the processes that measure must see it, too
        os.environ["MTST_BACKBONE"] = sys.argv.pop(sys.argv.index("--backbone") + 1)
        sys.argv.remove("--backbone")
    name = os.environ.get("MTST_BACKBONE", "all-MiniLM-L6-v2")
    # transformers runs BERT through torch's attention already.
    runs = {run: how for run, how in RUNS.items() if "mpnet" in name or "attention" not in run}
    question = f"what encode leaves out, {name}, {PRECISION}"
    compare(question, "tests.benchmarks.variants", runs, AS_IT_IS, 2000, __doc__)


if __name__ == "__main__":
    main()
