from __future__ import annotations

import math

import pytest
import torch

from mm.layers import Attention, Rotary, Rotation

WIDTH = 8


def heads(seed: int, length: int = 1) -> torch.Tensor:
    """Random (2, 3, T, 8) queries or keys."""
    return torch.randn(2, 3, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def at(rotary: Rotary, *positions: int) -> Rotation:
    return rotary(torch.tensor(positions))


def score(rotary: Rotary, query: int, key: int) -> torch.Tensor:
    """Gives the (2, 3) dot products of one query and one key, turned by their positions."""
    return (at(rotary, query).turn(heads(0)) * at(rotary, key).turn(heads(1))).sum((-2, -1))


@pytest.mark.parametrize("rotary", [Rotary(WIDTH), Rotary(WIDTH, 100.0, stretch=3.0)])
def test_scores_depend_on_distance_alone(rotary: Rotary) -> None:
    torch.testing.assert_close(score(rotary, 5, 2), score(rotary, 25, 22))
    assert float((score(rotary, 5, 2) - score(rotary, 5, 3)).abs().max()) > 0.1
    assert float((score(rotary, 5, 2) - score(rotary, 2, 5)).abs().max()) > 0.1, "left isn't told from right"


def test_turning_keeps_lengths_and_begins_with_no_turn() -> None:
    x = heads(0, 4)
    turned = at(Rotary(WIDTH), 0, 1, 7, 100).turn(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_pairs_are_complex_numbers_and_wavelengths_grow_geometrically() -> None:
    x, places = heads(0, 3), torch.tensor([1.0, 2.0, 50.0])
    angles = places[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    turned = at(Rotary(WIDTH, 10000.0), 1, 2, 50).turn(x)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_rows_may_have_positions_of_their_own() -> None:
    rotary, x = Rotary(WIDTH), heads(0, 3)
    rows = rotary(torch.tensor([[0, 1, 2], [4, 5, 6]])).turn(x)
    torch.testing.assert_close(rows[0], at(rotary, 0, 1, 2).turn(x)[0])
    torch.testing.assert_close(rows[1], at(rotary, 4, 5, 6).turn(x)[1])


def test_stretch_divides_positions() -> None:
    stretched, plain = at(Rotary(WIDTH, stretch=2.0), 6), at(Rotary(WIDTH), 3)
    torch.testing.assert_close(stretched.turn(heads(0)), plain.turn(heads(0)))


def test_llama3_stretches_long_wavelengths_alone() -> None:
    factor, low, high, original = 8.0, 1.0, 4.0, 200.0
    plain = Rotary(64).frequencies
    ratio = plain / Rotary(64, llama3=(factor, low, high, original)).frequencies
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < original / high, wavelengths > original / low
    between = ~short & ~long
    assert short.any() and long.any() and between.any()
    torch.testing.assert_close(ratio[short], torch.ones_like(ratio[short]))
    torch.testing.assert_close(ratio[long], torch.full_like(ratio[long], factor))
    assert bool(((ratio[between] > 1) & (ratio[between] < factor)).all()) and bool((ratio.diff() >= -1e-5).all())


def test_llama3_blends_linearly_in_the_number_of_waves() -> None:
    plain = Rotary(64).frequencies
    waves = 200.0 * plain / (2 * math.pi)
    weight = ((waves - 1.0) / 3.0).clamp(0, 1)
    blended = Rotary(64, llama3=(8.0, 1.0, 4.0, 200.0)).frequencies
    torch.testing.assert_close(blended, weight * plain + (1 - weight) * plain / 8.0)


def test_an_odd_width_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="must be even, not 7"):
        Rotary(7)


def test_frequencies_are_computed_also_where_a_model_is_only_planned_and_are_no_weights() -> None:
    with torch.device("meta"):
        rotary = Rotary(WIDTH)
    assert torch.equal(rotary.frequencies, Rotary(WIDTH).frequencies)
    assert not rotary.state_dict()


@torch.inference_mode()
def test_attention_turns_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    attention, rotary = Attention(24, 3).eval(), Rotary(WIDTH)
    x = torch.randn(2, 4, 24)
    near, far = at(rotary, 0, 1, 2, 3), at(rotary, 40, 41, 42, 43)

    def attended(rotation: Rotation | None) -> torch.Tensor:
        return attention(x, attention.keys_values(x, rotation), rotation=rotation)

    torch.testing.assert_close(attended(near), attended(far))
    assert float((attended(near) - attended(None)).abs().max()) > 1e-3
    plain, turned = attention.keys_values(x), attention.keys_values(x, far)
    assert torch.equal(plain.values, turned.values)
    torch.testing.assert_close(turned.keys, far.turn(plain.keys))
