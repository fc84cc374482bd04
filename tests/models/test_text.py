from __future__ import annotations

import pytest
import torch
from tiny import decoder

from mm.models import TextTransformer
from mm.models.presets import block
from mm.models.presets.gpt2 import gpt2
from mm.models.presets.llama import llama
from mm.models.presets.t5 import t5
from mm.models.text import Layout


def encoder() -> TextTransformer:
    torch.manual_seed(0)
    stack = [block(16, 2) for _ in range(2)]
    return TextTransformer(torch.nn.Embedding(20, 16), stack, 10, "bidirectional", norm=torch.nn.LayerNorm(16)).eval()


def test_padding_on_the_right_changes_nothing() -> None:
    model, tokens = encoder(), torch.tensor([[1, 2, 3]])
    padded = torch.tensor([[1, 2, 3, 0, 0]])
    real = padded > 0
    torch.testing.assert_close(model(padded, padding=real)[:, :3], model(tokens))


def test_padding_on_the_left_changes_nothing() -> None:
    model = decoder(20, 2)
    images = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(0))
    tokens, padded = torch.tensor([[4, 5, 6]]), torch.tensor([[0, 0, 4, 5, 6]])
    context = model.keys_values(images)
    plain = model(tokens, context=context)
    moved = model(padded, padding=torch.tensor([[False, False, True, True, True]]), context=context)
    torch.testing.assert_close(moved[:, 2:], plain)
    assert moved.isfinite().all()


def test_a_decoder_sees_only_what_precedes() -> None:
    model, tokens = decoder(20, 2), torch.tensor([[1, 2, 3, 4]])
    changed = tokens.clone()
    changed[0, 2] = 9
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])


def test_token_by_token_equals_at_once() -> None:
    model = decoder(20, 2)
    tokens = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    context = model.keys_values(torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(1)))
    cache = model.cache(3, 7)
    parts = [model(tokens[:, i:j], context=context, cache=cache) for i, j in ((0, 2), (2, 3), (3, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens, context=context))


SIZES = {"vocabulary": 20, "width": 16, "heads": 4, "blocks": 2, "max_tokens": 10}
POSITIONS = {
    "learned": lambda: gpt2(**SIZES),
    "rotary": lambda: llama(**SIZES, hidden=24, key_value_heads=2),
    "relative": lambda: t5(**SIZES, hidden=24, buckets=4, furthest=8),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("positions", POSITIONS)
def test_tokens_at_one_place_are_as_in_rows_of_their_own(positions: str, ahead: int, cached: bool) -> None:
    """Three beams behind two tokens they share: two tokens each, one after the other, all in one row."""
    torch.manual_seed(0)
    model = POSITIONS[positions]().eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.5)
    trunk, first, second = (torch.randint(20, (2, count)) for count in (2, 3, 3))
    prefix = torch.randn(2, ahead, 16) if ahead else None
    own = torch.eye(3, dtype=torch.bool)
    sees = torch.zeros(8, 8, dtype=torch.bool)
    sees[:2, :2] = torch.ones(2, 2, dtype=torch.bool).tril()
    sees[2:, :2] = True
    sees[2:5, 2:5], sees[5:, 2:5], sees[5:, 5:] = own, own, own
    sees, places = sees.expand(2, -1, -1), torch.tensor([[0, 1, 2, 2, 2, 3, 3, 3]]).expand(2, -1)
    whole = torch.cat([trunk, first, second], 1)
    cache = model.cache(2, ahead + 8) if cached else None
    parts = [
        model(
            whole[:, start:stop],
            prefix=prefix,
            cache=cache,
            layout=Layout(places[:, start:stop], sees[:, start:stop, :stop], places[:, :stop]),
        )
        for start, stop in ([(0, 2), (2, 5), (5, 8)] if cached else [(0, 8)])
    ]
    together = torch.cat(parts, 1)
    for beam in range(3):
        alone = model(torch.cat([trunk, first[:, beam, None], second[:, beam, None]], 1), prefix=prefix)
        torch.testing.assert_close(together[:, [0, 1, 2 + beam, 5 + beam]], alone)


def test_limits_are_named() -> None:
    model = encoder()
    with pytest.raises(ValueError, match="11 tokens are more than the 10"):
        model(torch.zeros(1, 11, dtype=torch.long))
    with pytest.raises(ValueError, match="no language-model head"):
        model.logits(torch.zeros(1, 1, 16))
    with pytest.raises(ValueError, match="without cross-attention"):
        model.keys_values(torch.zeros(1, 4, 16))
