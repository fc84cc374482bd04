from __future__ import annotations

import pytest
import torch

from mm.layers import attention_mask
from mm.layers.masks import MaskKind

PADDING = torch.tensor([[True, True, True, True], [False, True, True, True]])


def looks(mask: torch.Tensor | None, row: int, query: int, key: int) -> bool:
    return True if mask is None else bool(mask.expand(2, 1, -1, -1)[row, 0, query, key])


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("queries", [1, 2, 4])
@pytest.mark.parametrize("kind", ["bidirectional", "causal", "prefix"])
def test_who_may_look_at_whom(kind: MaskKind, queries: int, padding: torch.Tensor | None) -> None:
    mask = attention_mask(kind, queries, 4, padding=padding, prefix=2)
    for row in range(2):
        for query in range(queries):
            position = 4 - queries + query
            for key in range(4):
                real = padding is None or bool(padding[row, key])
                allowed = {
                    "bidirectional": True,
                    "causal": key <= position,
                    "prefix": key <= position or key < 2,
                }[kind]
                alone = kind == "causal" and queries > 1 and padding is not None and row == 1 and position == 0
                assert looks(mask, row, query, key) == ((real and allowed) or (alone and key == position))


@pytest.mark.parametrize("queries", [2, 4])
def test_no_position_is_left_without_anything_to_look_at(queries: int) -> None:
    padding = torch.tensor([[False, False, True, True], [True, True, False, False]])
    mask = attention_mask("causal", queries, 4, padding=padding)
    assert mask is not None
    plain = attention_mask("causal", queries, 4)
    assert plain is not None
    blind = ~(plain & padding[:, None, None]).any(-1)
    assert blind.any() == (queries == 4)
    assert mask.any(-1).all()
    assert torch.equal(mask[~blind], (plain & padding[:, None, None])[~blind])
    assert mask[blind].sum() == blind.sum()


def test_no_mask_where_none_is_needed() -> None:
    assert attention_mask("bidirectional", 3, 3) is None
    assert attention_mask("causal", 1, 9) is None


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="3 keys are fewer than 4 queries"):
        attention_mask("causal", 4, 3)
    with pytest.raises(ValueError, match="unknown mask 'sideways': bidirectional, causal or prefix"):
        attention_mask("sideways", 1, 1)  # type: ignore[arg-type]
