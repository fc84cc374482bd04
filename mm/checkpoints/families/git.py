"""GIT (arXiv:2205.14100): an image in front of its caption."""

from __future__ import annotations

from typing import Any

from mm.checkpoints.convert import Converted, HubFolder, Names, layer, same
from mm.checkpoints.families.bert import bert_blocks, bert_embeddings, bert_numbers
from mm.checkpoints.families.vision import clip_vision, vit_numbers
from mm.checkpoints.preprocessing import read_preprocessing
from mm.errors import CheckpointError
from mm.models import Parts

UNUSED = ("*.position_ids",)
EMBEDDING, OUTPUT = "git.embeddings.word_embeddings.weight", "output"


def convert_git(hub: HubFolder) -> Converted:
    """Converts a ``GitForCausalLM`` of images.

    Raises:
        CheckpointError: it is one of videos.
    """
    if (frames := hub.config.values.get("num_image_with_embedding")) is not None:
        raise CheckpointError(
            f"{hub.config.source}: num_image_with_embedding is {frames!r}: a checkpoint for videos; mm takes GIT for "
            "single images"
        )
    parts = _parts(hub)
    assert parts.text_decoder is not None
    names = clip_vision("git.image_encoder.vision_model", parts.vision["blocks"])
    names |= bert_embeddings("text_decoder", "git.embeddings", types=False)
    names |= bert_blocks("text_decoder", "git.encoder", parts.text_decoder["blocks"])
    names |= layer("connector.0", "git.visual_projection.visual_projection.0")
    names |= layer("connector.1", "git.visual_projection.visual_projection.1")
    tied = parts.text_decoder["tied"]
    copies = {f"{OUTPUT}.weight": EMBEDDING} if tied else {}
    return Converted("GIT", parts, names | _output(tied), _special(hub), UNUSED, copies)


def _parts(hub: HubFolder) -> Parts:
    seeing = hub.config.part("vision_config")
    _, mean, std = read_preprocessing(hub.folder, seeing.get("image_size", 224))
    vision = vit_numbers(seeing, mean, std, hidden_act="quick_gelu") | {"pre_norm": True}
    text = bert_numbers(hub.config, num_hidden_layers=6, max_position_embeddings=1024)
    return Parts(
        vision,
        text_decoder=text | {"tied": hub.config.get("tie_word_embeddings", False), "head_transform": False},
        connector={"preset": "projection", "norm": True, "eps": vision["eps"]},
        sees="prefix",
    )


def _output(tied: bool) -> Names:
    if tied:
        return {"text_decoder.head.bias": same(f"{OUTPUT}.bias")}
    return layer("text_decoder.head", OUTPUT)


def _special(hub: HubFolder) -> dict[str, Any]:
    padding = hub.token_or_none("pad_token_id")
    return {
        "padding": 0 if padding is None else padding,
        "end": hub.token("eos_token_id"),
        "embed": None,
        "match": None,
        "languages": {"en": hub.token("bos_token_id")},
        "close": None,
    }
