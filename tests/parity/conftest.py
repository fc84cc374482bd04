"""Parity with reference implementations.

To test a family: build its reference class small and random (``folders.random_``), ``save_pretrained`` it with
tokenizer and image processor, load that folder with ``mm.load``, and compare outputs with the ``close`` fixture, whose
row appears in the summary at the end. Compare unpadded and padded batches, and greedy generation token by token.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

LIMIT = 1e-5


@pytest.fixture
def close(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares what mm gives with the reference: at most 1e-5 apart anywhere."""

    def compare(row: str, ours: torch.Tensor, reference: torch.Tensor, limit: float = LIMIT) -> None:
        assert ours.shape == reference.shape and ours.isfinite().all()
        difference = float((ours - reference).abs().max())
        request.node.user_properties.append(("largest difference", (row, difference)))
        assert difference <= limit, f"{row}: {difference:.2e} apart"
        assert float(reference.std()) > 1e-2, f"{row}: the reference gives nothing to compare"

    return compare
