from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

DIFFERENCES: dict[str, float] = {}
LIMIT = 1e-5


@pytest.fixture
def close() -> Iterator[Callable[[str, torch.Tensor, torch.Tensor], None]]:
    """Compares what mm gives with the reference: at most 1e-5 apart anywhere; the summary prints the largest difference
    of each row."""

    def compare(row: str, ours: torch.Tensor, reference: torch.Tensor, limit: float = LIMIT) -> None:
        assert ours.shape == reference.shape and ours.isfinite().all()
        difference = float((ours - reference).abs().max())
        DIFFERENCES[row] = max(difference, DIFFERENCES.get(row, 0.0))
        assert difference <= limit, f"{row}: {difference:.2e} apart"
        assert float(reference.std()) > 1e-2, f"{row}: the reference gives nothing to compare"

    yield compare
