"""masked_mean and its siblings, and the bugs of other implementations."""

import pytest
import torch

from mtst_utils import masked_mean
from mtst_utils.pooling import first_token, masked_max

TOKENS = torch.tensor(
    [[[1.0, 2.0], [3.0, 6.0], [100.0, -100.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 9.0]]]
)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_masked_mean_by_hand():
    assert masked_mean(TOKENS, MASK).tolist() == [[2.0, 4.0], [3.0, 4.0]]


def test_padding_is_not_averaged():
    # The common bug: hidden.mean(1). What stands in padding must not matter, and how much of it
    # there is neither.
    other = TOKENS.clone()
    other[0, 2] = 12345.0
    assert torch.equal(masked_mean(other, MASK), masked_mean(TOKENS, MASK))
    wider, wider_mask = (
        torch.cat([TOKENS, torch.ones(2, 5, 2)], 1),
        torch.cat([MASK, torch.zeros(2, 5, dtype=int)], 1),
    )
    assert torch.equal(masked_mean(wider, wider_mask), masked_mean(TOKENS, MASK))


def test_padding_in_front():
    assert masked_mean(TOKENS.flip(1), MASK.flip(1)).tolist() == [[2.0, 4.0], [3.0, 4.0]]


def test_gradient_reaches_real_tokens_only():
    # Another common bug: no_grad inside forward.
    tokens = TOKENS.clone().requires_grad_()
    masked_mean(tokens, MASK).sum().backward()
    assert tokens.grad[0].tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]


def test_half_precision_is_averaged_in_float32():
    tokens, mask = (
        torch.full((1, 4096, 2), 1.001, dtype=torch.bfloat16),
        torch.ones(1, 4096, dtype=torch.long),
    )
    assert masked_mean(tokens, mask).dtype == torch.float32
    assert torch.allclose(masked_mean(tokens, mask), tokens[:, 0].float(), rtol=1e-5)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int32)],
)
def test_any_kind_of_mask(mask):
    assert torch.allclose(masked_mean(TOKENS, mask), TOKENS.mean(1))


def test_max_and_first_token():
    assert masked_max(TOKENS, MASK).tolist() == [[3.0, 6.0], [6.0, 9.0]]
    assert masked_max(-TOKENS, MASK)[0].tolist() == [-1.0, -2.0]  # padding at 0 would win here
    assert first_token(TOKENS, MASK).tolist() == [[1.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("pool", [masked_mean, masked_max, first_token])
def test_bad_masks(pool):
    with pytest.raises(ValueError, match=r"\[2, 3, 2\] and \[2, 4\]"):
        pool(TOKENS, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[B, T, H\]"):
        pool(TOKENS[0], MASK)
    with pytest.raises(ValueError, match="sentence 1 of the batch has no real token"):
        pool(TOKENS, torch.tensor([[1, 1, 1], [0, 0, 0]]))
