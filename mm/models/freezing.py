"""Which weights a training leaves as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import nn

from mm.errors import OptionError
from mm.models.dual_encoder import DualEncoder
from mm.models.text import TextTransformer
from mm.models.vision_language import VisionLanguageModel

PARTS = ("vision", "text_encoder", "text_decoder", "language_model")


def freeze(model: VisionLanguageModel | DualEncoder, parts: Collection[str]) -> None:
    """Takes parts of a model out of training.

    Weights that several parts share, as both text parts of mm-tiny share their token embedding, are frozen with any one
    of them.

    Args:
        model: whose parts.
        parts: ``vision``, ``text_encoder``, ``text_decoder``, or ``language_model``: the text decoder but for what sees
            the image, as in Flamingo (arXiv:2204.14198).

    Raises:
        OptionError: an unknown part, one that the model doesn't have, or nothing is left to train.
    """
    for name in parts:
        if name not in PARTS:
            raise OptionError(f"frozen part {name!r} is unknown: {', '.join(PARTS)}")
        for parameter in _parameters(model, name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError(f"nothing is left to train when {', '.join(parts)} are frozen")


def _parameters(model: VisionLanguageModel | DualEncoder, part: str) -> Iterable[nn.Parameter]:
    """Gives the parameters of a part.

    Raises:
        OptionError: the model doesn't have it.
    """
    if part == "text_encoder" and isinstance(model, DualEncoder):
        return model.text_parameters()
    module = model.text_decoder if part == "language_model" else getattr(model, part)
    if module is None:
        raise OptionError(f"frozen part {part!r}: this model has none")
    return language_model_parameters(module) if part == "language_model" else module.parameters()


def language_model_parameters(decoder: TextTransformer) -> Iterator[nn.Parameter]:
    """Gives the parameters of a text decoder but for those of its cross-attention, its norms and its gates."""
    for name, parameter in decoder.named_parameters():
        if not any(part.startswith(("cross_attention", "crossing")) for part in name.split(".")):
            yield parameter
