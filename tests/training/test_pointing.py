"""The pointing loss against attention written out."""

from __future__ import annotations

import pytest
import torch

from mmrr.training.pointing import attention_logits, half_of_heads, pointing_loss, pointing_loss_of_weights


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_loss_is_minus_the_log_of_the_attention_on_the_targets(key_heads):
    """Three rows, four heads (two of them trained), also with fewer key heads; float32 within 1e-6."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 5, 8, generator=generator)
    keys = torch.randn(key_heads, 6, 8, generator=generator)
    rows = [4, 0, 2]
    targets = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    found = pointing_loss(attention_logits(queries, keys, rows), targets[:, None])
    assert found.shape == (3, 2)
    for i, row in enumerate(rows):
        for head in range(2):
            weights = (queries[head, row] @ keys[head // (4 // key_heads)].T / 8**0.5).softmax(-1)
            assert found[i, head].item() == pytest.approx(-weights[targets[i]].sum().log().item(), abs=1e-6)
    assert found[2].abs().max() <= 1e-6  # all columns are targets
    weights = attention_logits(queries, keys, torch.tensor(rows)).softmax(-1)
    assert pointing_loss_of_weights(weights, targets.float()).item() == pytest.approx(found.mean().item(), abs=1e-5)


def test_a_step_moves_attention_to_the_targets():
    logits = torch.zeros(1, 4, requires_grad=True)
    targets = torch.tensor([[True, False, False, True]])
    pointing_loss(logits, targets).sum().backward()
    assert (logits.grad[targets] < 0).all()
    assert (logits.grad[~targets] > 0).all()


def test_half_of_the_heads_are_trained_and_one_at_least():
    assert [half_of_heads(n) for n in (1, 2, 3, 8)] == [1, 1, 1, 4]
