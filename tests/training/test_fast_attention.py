from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mm.training.attention import fast_attention

CPU = torch.device("cpu")


def fused() -> bool:
    """Whether attention may be fused here, going by what its gradient passes through."""
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    found = F.scaled_dot_product_attention(query, query, query)
    steps, names = [found.grad_fn], set()
    while steps:
        step = steps.pop()
        if step is not None:
            names.add(type(step).__name__)
            steps += [following for following, _ in step.next_functions]
    return any("FlashAttention" in name for name in names)


@pytest.mark.parametrize("reduced", [False, True])
def test_attention_is_fused_but_in_reduced_precision_on_a_cpu(reduced: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        assert fused()
        with fast_attention(CPU):
            assert fused() != reduced
        assert fused()
