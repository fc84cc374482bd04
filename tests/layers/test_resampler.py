from __future__ import annotations

import torch

from mm.layers import Resampler
from mm.models.presets.connectors import resampler


def built(**options: object) -> Resampler:
    torch.manual_seed(0)
    sizes = {"blocks": 2, "latents": 5, "heads": 3, "head_width": 4, "hidden": 20}
    return resampler(16, **(sizes | options))  # type: ignore[arg-type]


def test_any_number_of_tokens_becomes_the_number_of_latents() -> None:
    net = built()
    for count in (1, 9, 40):
        assert net(torch.randn(2, count, 16)).shape == (2, 5, 16)
    assert net.width == 16


def test_a_block_is_its_parts() -> None:
    """Latents look at the image and at each other, both normalized, and keys come from the same norm as queries."""
    net = built(blocks=1, head_norms=True)
    block, image = net.blocks[0], torch.randn(3, 7, 16)
    latents = net.latents.expand(3, -1, -1)
    normalized = block.latents_norm(latents)
    seen = torch.cat([block.context_norm(image), normalized], 1)
    attention = block.attention

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (3, 4)).transpose(1, 2)

    query = attention.query_norm(heads(attention.query(normalized)))
    key, value = attention.key_norm(heads(attention.key(seen))), heads(attention.value(seen))
    gathered = (query @ key.mT / 2).softmax(-1) @ value
    latents = latents + attention.output(gathered.transpose(1, 2).flatten(2))
    latents = latents + block.feed_forward(block.feed_forward_norm(latents))
    torch.testing.assert_close(net(image), net.norm(latents))


def test_order_of_the_image_tokens_is_nothing_to_it() -> None:
    net, image = built(), torch.randn(2, 6, 16)
    torch.testing.assert_close(net(image), net(image.flip(1)))


def test_images_do_not_see_each_other() -> None:
    net, images = built(), torch.randn(3, 6, 16)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))


def test_every_parameter_gets_a_gradient() -> None:
    net = built(head_norms=True)
    (net(torch.randn(2, 6, 16)) * torch.randn(2, 5, 16)).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in net.parameters())
