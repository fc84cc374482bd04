from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mm.layers import Attention, Crossing, FeedForward
from mm.models import TextTransformer
from mm.models.presets.gpt2 import gpt2
from mm.models.presets.llama import llama
from mm.models.text import Layout

WIDTH = 16


def crossing(gate_width: int = 1, gate: float = 0.7, bias: bool = True) -> Crossing:
    torch.manual_seed(0)
    attention = Attention(WIDTH, 4, context_width=12, bias=bias)
    unit = Crossing(
        attention, FeedForward(WIDTH, 20), (nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)), gate_width=gate_width
    )
    if gate_width:
        assert unit.attention_gate is not None and unit.feed_forward_gate is not None
        nn.init.constant_(unit.attention_gate, gate)
        nn.init.constant_(unit.feed_forward_gate, -gate)
    return unit


def decoder(preset: str, cross: bool) -> TextTransformer:
    """A language model, with gated cross-attention in front of every other block or without."""
    torch.manual_seed(0)
    sizes = {"vocabulary": 30, "width": WIDTH, "heads": 4, "blocks": 4, "max_tokens": 20, "hidden": 24}
    seeing = {"context_width": 12, "cross": "gated", "cross_every": 2} if cross else {}
    build = {"llama": llama, "gpt2": gpt2}[preset]
    return build(**sizes, **seeing).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("gate_width", [0, 1, WIDTH])
def test_a_crossing_is_its_parts(gate_width: int) -> None:
    unit = crossing(gate_width)
    x, image = torch.randn(2, 5, WIDTH), torch.randn(2, 7, 12)
    context = unit.keys_values(image)
    gate = torch.tanh(torch.tensor(0.7)) if gate_width else torch.tensor(1.0)
    sign = -1 if gate_width else 1
    h = x + gate * unit.attention(unit.attention_norm(x), context)
    h = h + sign * gate * unit.feed_forward(unit.feed_forward_norm(h))
    torch.testing.assert_close(unit(x, context), h)


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_new_gates_leave_the_language_model_as_it_is(preset: str) -> None:
    seeing, blind = decoder(preset, True), decoder(preset, False)
    crossings = [name for name in seeing.state_dict() if ".crossing." in name]
    assert {name.split(".")[1] for name in crossings} == {"0", "2"}
    blind.load_state_dict({name: value for name, value in seeing.state_dict().items() if name not in crossings})
    tokens, image = torch.randint(30, (2, 9)), torch.randn(2, 7, 12)
    context = seeing.keys_values(image)
    assert torch.equal(seeing(tokens, context=context), blind(tokens))
    for block in (seeing.blocks[0], seeing.blocks[2]):
        nn.init.constant_(block.crossing.attention_gate, 0.5)
    assert not torch.allclose(seeing(tokens, context=context), blind(tokens), atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_token_that_may_look_nowhere_gathers_nothing(bias: bool) -> None:
    unit = crossing(bias=bias)
    x, image = torch.randn(2, 5, WIDTH, requires_grad=True), torch.randn(2, 7, 12, requires_grad=True)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, :, :2] = False
    mask[1, :, 3] = False
    given = unit(x, unit.keys_values(image), mask)
    alone = x + _feed_forward(unit, x)
    blind = ~mask.any(-1)[:, 0]
    torch.testing.assert_close(given[blind], alone[blind])
    torch.testing.assert_close(given[~blind], unit(x, unit.keys_values(image))[~blind])
    given.square().sum().backward()
    for value in (x, image, *unit.parameters()):
        assert value.grad is not None and value.grad.isfinite().all()


def _feed_forward(unit: Crossing, x: Tensor) -> Tensor:
    assert unit.feed_forward_gate is not None
    return unit.feed_forward_gate.tanh() * unit.feed_forward(unit.feed_forward_norm(x))


def test_nothing_to_see_at_all() -> None:
    unit, x = crossing(), torch.randn(2, 5, WIDTH)
    for shape in ((2, 1, 5, 7), (2, 1, 1, 7)):
        given = unit(x, unit.keys_values(torch.randn(2, 7, 12)), torch.zeros(shape, dtype=torch.bool))
        torch.testing.assert_close(given, x + _feed_forward(unit, x))


def test_tokens_at_one_place_look_where_the_mask_of_that_place_says() -> None:
    """Beams of an image are tokens of one row: each sees what it would see as a row of its own."""
    net = decoder("llama", True)
    for block in (net.blocks[0], net.blocks[2]):
        nn.init.constant_(block.crossing.attention_gate, 2.0)
    trunk, beams = torch.randint(1, 30, (2, 3)), torch.randint(1, 30, (2, 4))
    mask = torch.rand(2, 1, 4, 6) < 0.4
    mask[1, :, 3], mask[0, :, 3, :2] = False, True
    context = net.keys_values(torch.randn(2, 6, 12))._replace(mask=mask)
    places = torch.tensor([[0, 1, 2, 3, 3, 3, 3]]).expand(2, -1)
    sees = torch.ones(7, 7, dtype=torch.bool).tril()
    sees[3:, 3:] = torch.eye(4, dtype=torch.bool)
    layout = Layout(places, sees.expand(2, -1, -1), places)
    together = net(torch.cat([trunk, beams], 1), context=context, layout=layout)[:, 3:]
    for beam in range(4):
        alone = net(torch.cat([trunk, beams[:, beam : beam + 1]], 1), context=context)
        torch.testing.assert_close(together[:, beam], alone[:, -1])


@pytest.mark.parametrize("cached", [True, False])
def test_padding_on_the_left_moves_no_mask(cached: bool) -> None:
    """Tokens are counted without padding; those behind the last one of the mask look where that one does."""
    net = decoder("llama", True)
    for block in (net.blocks[0], net.blocks[2]):
        nn.init.constant_(block.crossing.attention_gate, 2.0)
    tokens, image = torch.randint(1, 30, (2, 8)), torch.randn(2, 6, 12)
    mask = torch.zeros(2, 1, 3, 6, dtype=torch.bool)
    mask[0, :, 1, :3], mask[0, :, 2, 3:], mask[1, :, 2] = True, True, True
    context = net.keys_values(image)._replace(mask=mask)
    whole = [*range(3), *([2] * 5)]
    spelled = context._replace(mask=mask[:, :, whole])
    shifted = torch.cat([torch.zeros(2, 3, dtype=torch.int64), tokens], 1)
    padding = torch.arange(11)[None] >= torch.tensor([[3], [3]])
    expected = net(tokens, context=spelled)
    torch.testing.assert_close(net(tokens, context=context), expected)
    if not cached:
        torch.testing.assert_close(net(shifted, padding=padding, context=context)[:, 3:], expected)
        return
    cache = net.cache(2, 11)
    parts = [
        net(shifted[:, first:last], padding=padding[:, :last], context=context, cache=cache)
        for first, last in ((0, 4), (4, 6), (6, 7), (7, 11))
    ]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 3:], expected)
