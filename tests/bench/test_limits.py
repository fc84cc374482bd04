from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mm.bench.checkpoint import BASE, SMALL, write_blip
from mm.bench.limits import (
    Machine,
    cached_numbers,
    decoder_weights,
    decoding_limit,
    fit_line,
    vision_flops,
    vision_limit,
)
from mm.bench.peers import Case

MACHINE = Machine(bandwidth=1e9, rates={"float32": 1e9, "bfloat16": 4e9, "int8": 8e9})


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> transformers.BlipForConditionalGeneration:
    """The small BLIP of the benchmark, with attention that is counted."""
    folder = tmp_path_factory.mktemp("blip")
    write_blip(folder, SMALL)
    return transformers.BlipForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def test_flops_are_those_that_torch_counts(blip: transformers.BlipForConditionalGeneration) -> None:
    pixels = torch.zeros(3, 3, SMALL.image_size, SMALL.image_size)
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        seen = blip.vision_model(pixels).last_hidden_state
        for name, module in blip.text_decoder.named_modules():
            if name.endswith(("crossattention.self.key", "crossattention.self.value")):
                module(seen)
    assert vision_flops(SMALL, 3) == counted.get_total_flops()
    assert vision_flops(SMALL, 6) == 2 * vision_flops(SMALL, 3)


def test_weights_are_those_that_a_token_passes(blip: transformers.BlipForConditionalGeneration) -> None:
    once = ("crossattention.self.key", "crossattention.self.value", "embeddings")
    read = [
        value.numel()
        for name, value in blip.text_decoder.named_parameters()
        if value.ndim == 2 and not any(part in name for part in once)
    ]
    tied = SMALL.vocabulary * SMALL.width  # the map to logits is the token embedding
    assert decoder_weights(SMALL) == sum(read) + tied


def test_beams_share_image_keys_and_values() -> None:
    pair = 2 * BASE.blocks * BASE.width
    assert cached_numbers(BASE, Case(1, 1, 1)) == pair * (577 + 1)
    assert cached_numbers(BASE, Case(8, 3, 21)) == pair * 8 * (577 + 3 * 11)


def test_limits_are_work_over_speed() -> None:
    assert vision_limit(BASE, 2, "bfloat16", MACHINE) == pytest.approx(vision_flops(BASE, 2) / 4e9)
    case = Case(1, 1, 10)
    for precision, weight, cached in (("float32", 4, 4), ("bfloat16", 2, 2), ("int8", 1, 2)):
        expected = 10 * (weight * decoder_weights(BASE) + cached * cached_numbers(BASE, case)) / 1e9
        assert decoding_limit(BASE, case, precision, MACHINE) == pytest.approx(expected)


def test_a_line_through_times_on_a_line() -> None:
    line = fit_line([1, 2, 4, 8], [0.5, 0.7, 1.1, 1.9])
    assert (line.constant, line.slope) == (pytest.approx(0.3), pytest.approx(0.2))
    assert line.residual == pytest.approx(0.0, abs=1e-12)


def test_the_largest_distance_from_a_line_is_relative_to_the_time() -> None:
    line = fit_line([0, 1, 2], [1.0, 1.0, 4.0])  # 0.5 + 1.5 n
    assert (line.constant, line.slope) == (pytest.approx(0.5), pytest.approx(1.5))
    assert line.residual == pytest.approx(1.0)
