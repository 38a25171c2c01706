"""Pooling: from one vector per token to one vector per sentence.

Taught in notebook 01, section 3.
"""

import torch
from torch import Tensor

from mtst_utils import checks


def masked_mean(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """Average each sentence's token vectors over its real tokens.

    token_embeddings [B, T, H], attention_mask [B, T] (1 = real token, 0 = padding); returns [B, H]
    in float32. Raises ValueError when the shapes do not fit or a sentence has no real token.
    Reimers & Gurevych 2019 (Sentence-BERT), section 3. Taught in notebook 01, section 3.
    """
    mask = _checked_mask(token_embeddings, attention_mask)
    return (token_embeddings.float() * mask).sum(1) / mask.sum(1)


def masked_max(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The largest value of each dimension over the real tokens.

    Shapes and errors as in masked_mean.
    """
    mask = _checked_mask(token_embeddings, attention_mask)
    return token_embeddings.float().masked_fill(mask == 0, -torch.inf).amax(1)


def first_token(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The first real token's vector ([CLS] or <s>); shapes and errors as in masked_mean."""
    first = _checked_mask(token_embeddings, attention_mask).argmax(1)  # not 0 if padded in front
    return token_embeddings.take_along_dim(first.unsqueeze(-1), 1).squeeze(1).float()


def last_token(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The last real token's vector; shapes and errors as in masked_mean."""
    last = _checked_mask(token_embeddings, attention_mask).cumsum(1).argmax(1)
    return token_embeddings.take_along_dim(last.unsqueeze(-1), 1).squeeze(1).float()


def weighted_mean(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean with weights 1, 2, 3, ... from the first real token on; see masked_mean."""
    mask = _checked_mask(token_embeddings, attention_mask)
    weights = mask * mask.cumsum(1)
    return (token_embeddings.float() * weights).sum(1) / weights.sum(1)


def mean_sqrt_length(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The sum over the real tokens, divided by the root of their number; see masked_mean."""
    mask = _checked_mask(token_embeddings, attention_mask)
    return (token_embeddings.float() * mask).sum(1) / mask.sum(1).sqrt()


# The last three for folders of sentence-transformers, whose names they have.
POOLINGS = {
    "mean": masked_mean,
    "cls": first_token,
    "max": masked_max,
    "lasttoken": last_token,
    "weightedmean": weighted_mean,
    "mean_sqrt_len_tokens": mean_sqrt_length,
}


def _checked_mask(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The mask as float32 [B, T, 1]."""
    checks.instance("token_embeddings", token_embeddings, torch.Tensor)
    checks.instance("attention_mask", attention_mask, torch.Tensor)
    if token_embeddings.ndim != 3 or attention_mask.shape != token_embeddings.shape[:2]:
        raise ValueError(
            f"token_embeddings must be [B, T, H] and attention_mask [B, T]; got "
            f"{list(token_embeddings.shape)} and {list(attention_mask.shape)}"
        )
    empty = attention_mask.sum(1) == 0
    if empty.any():
        raise ValueError(
            f"attention_mask: sentence {int(empty.nonzero()[0])} of the batch has no real token"
        )
    return attention_mask.unsqueeze(-1).float()
