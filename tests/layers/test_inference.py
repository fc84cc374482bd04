from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mm.layers.inference import Int8Linear, PackedLinear

KINDS = ["float32", "bfloat16", "int8"]
ERRORS = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 2e-2}


def prepared(linear: nn.Linear, kind: str) -> PackedLinear | Int8Linear:
    if kind == "int8":
        return Int8Linear(linear.weight, linear.bias)
    return PackedLinear(linear.weight, linear.bias, getattr(torch, kind))


def distance(x: Tensor, y: Tensor) -> float:
    """The length of a difference, as a share of the second vector's."""
    return float((x.float() - y.float()).norm() / y.float().norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (5, 48), (2, 3, 48), (0, 48), (3, 0, 48)])
def test_it_does_what_the_linear_map_does(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        given, expected = prepared(linear, kind)(x), linear(x)
    assert given.shape == expected.shape and given.dtype == torch.float32
    assert distance(given, expected) < ERRORS[kind] or not x.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gives_the_same_in_any_batch(kind: str) -> None:
    torch.manual_seed(0)
    layer = prepared(nn.Linear(768, 256), kind)
    x = torch.randn(64, 768)
    with torch.inference_mode():
        whole = layer(x)
        for rows in (1, 2, 3, 7, 33):
            assert torch.equal(torch.cat([layer(part) for part in x.split(rows)]), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_large_numbers_costs_others_no_precision(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 33)
    x = torch.randn(4, 48)
    large = x * torch.tensor([[1.0], [1e4], [1e-6], [0.0]])
    with torch.inference_mode():
        given, expected = prepared(linear, kind)(large), linear(large)
    for row, wanted in zip(given, expected, strict=True):
        assert distance(row, wanted) < ERRORS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_needn_t_lie_next_to_each_other(kind: str) -> None:
    torch.manual_seed(0)
    layer = prepared(nn.Linear(48, 33), kind)
    x = torch.randn(6, 48, 5).transpose(1, 2)[::2]
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_in_the_precision_of_the_input(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 33)
    x = torch.randn(5, 48).bfloat16()
    with torch.inference_mode():
        given = prepared(linear, kind)(x)
        assert given.dtype == torch.bfloat16
        assert distance(given, linear(x.float())) < 2e-2


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_its_weight_back(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 33)
    layer = prepared(linear, kind)
    assert (layer.in_features, layer.out_features) == (48, 33)
    assert layer.weight.shape == linear.weight.shape and layer.weight.dtype == torch.float32
    step = linear.weight.detach().abs().amax(1, keepdim=True) / {"float32": 1e9, "bfloat16": 256, "int8": 253}[kind]
    assert ((layer.weight - linear.weight).abs() <= step).all()


def test_integers_round_to_the_nearest() -> None:
    """One input has the scale of its row, the others stand a little above or below half a step."""
    x = torch.tensor([[127.0, 10.49, 10.51, -10.49, -10.51, -127.0]])
    with torch.inference_mode():
        given = Int8Linear(torch.eye(6), None)(x)
    torch.testing.assert_close(given, torch.tensor([[127.0, 10.0, 11.0, -10.0, -11.0, -127.0]]), rtol=0, atol=1e-4)
