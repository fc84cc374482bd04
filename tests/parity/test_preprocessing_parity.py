from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mm.checkpoints.preprocessing import read_preprocessing
from mm.data.images import read_image
from mm.data.transforms import ImageTransform, to_pixels
from mm.errors import CheckpointError
from mm.models.vision import Normalize

SAMPLES = sorted((Path(__file__).parents[2] / "data" / "samples").glob("*.jpg"))
LARGEST, MEAN = 2.0, 0.2  # in steps of 1/255, which pixels of eight bits have
PROCESSORS: dict[str, tuple[Any, int]] = {
    "BLIP": (transformers.BlipImageProcessor, 384),
    "CLIP": (transformers.CLIPImageProcessor, 224),
    "GIT": (transformers.CLIPImageProcessor, 224),
    "SigLIP": (transformers.SiglipImageProcessor, 224),
    "ViT": (transformers.ViTImageProcessor, 224),
    "DeiT": (transformers.DeiTImageProcessor, 224),
    "IDEFICS": (transformers.IdeficsImageProcessor, 224),
}
SIZES = [(97, 641), (641, 97), (1000, 33), (301, 299), (450, 223), (225, 451), (31, 23), (7, 13), (1, 5)]


def made(folder: Path) -> list[Path]:
    """Pictures of odd sizes, in modes other than RGB, and turned by their EXIF data."""
    photo = Image.open(SAMPLES[0]).convert("RGB")
    noise = np.random.default_rng(0).integers(0, 256, (211, 331, 3), dtype=np.uint8)
    images = {f"{width}x{height}.png": photo.resize((width, height)) for width, height in SIZES}
    images |= {"noise.png": Image.fromarray(noise), "grey.png": photo.convert("L"), "grey.jpg": photo.convert("L")}
    for name, image in images.items():
        image.save(folder / name)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.resize((260, 190)).save(folder / f"turned{orientation}.jpg", exif=exif)
    return sorted(folder.iterdir())


def ours(folder: Path, image: Path, size: int) -> torch.Tensor:
    """What the blocks of a vision encoder see: (1, 3, H, W)."""
    preprocessing, mean, std = read_preprocessing(folder, size)
    return Normalize(mean, std)(to_pixels(ImageTransform(preprocessing)(read_image(image))))[None]


def theirs(processor: Any, image: Path | Image.Image) -> torch.Tensor:
    """The same of the reference, which decodes, turns and scales a file named to it."""
    seen = processor(str(image) if isinstance(image, Path) else image, return_tensors="pt")
    return seen if isinstance(seen, torch.Tensor) else seen.pixel_values


def check(processor: Any, folder: Path, images: list[Path], size: int, close: Any) -> None:
    """Compares pixels before they were shifted and scaled."""
    _, _, std = read_preprocessing(folder, size)
    steps = torch.tensor(std).view(3, 1, 1) * 255
    for image in images:
        seen, expected = ours(folder, image, size) * steps, theirs(processor, image).float() * steps
        close("pixels (in 1/255)", seen, expected, LARGEST)
        assert float((seen - expected).abs().mean()) <= MEAN, image.name


def write(folder: Path, nested: bool, values: dict[str, Any]) -> None:
    """Writes an image processor's file in one of its two layouts."""
    if nested:
        content = {"processor_class": "Processor", "image_processor": values}
        (folder / "processor_config.json").write_text(json.dumps(content))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("row", PROCESSORS)
def test_pixels_are_those_of_the_reference(row: str, nested: bool, tmp_path: Path, close: Any) -> None:
    kind, size = PROCESSORS[row]
    images = tmp_path / "images"
    images.mkdir()
    processor = kind()
    write(tmp_path, nested, json.loads(processor.to_json_string()))
    check(processor, tmp_path, [*SAMPLES, *made(images)], size, close)


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("row", ["CLIP", "ViT", "DeiT"])
def test_filters(row: str, resample: int, tmp_path: Path, close: Any) -> None:
    images = tmp_path / "images"
    images.mkdir()
    kind, size = PROCESSORS[row]
    processor = kind(resample=resample)
    processor.save_pretrained(tmp_path)
    check(processor, tmp_path, [*SAMPLES[:3], *made(images)], size, close)


@pytest.mark.parametrize("alpha", ["RGBA", "LA", "P"])
def test_transparency_is_white(alpha: str, tmp_path: Path, close: Any) -> None:
    photo = Image.open(SAMPLES[1]).convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    path = tmp_path / "transparent.png"
    photo.convert(alpha).save(path)
    for row in ("BLIP", "CLIP", "SigLIP", "IDEFICS"):
        kind, size = PROCESSORS[row]
        kind().save_pretrained(tmp_path)
        # The reference composites images that are given to it opened; of a file's name it takes the colours alone.
        seen, expected = ours(tmp_path, path, size), theirs(kind(), Image.open(path))
        close("pixels (in 1/255)", seen, expected, LARGEST / 255)


FILES: dict[str, tuple[str, dict[str, Any], int]] = {
    "old ViT": (
        "ViT",
        {
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ViTFeatureExtractor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "size": 224,
        },
        224,
    ),
    "old CLIP": (
        "CLIP",
        {
            "crop_size": 96,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 110,
        },
        96,
    ),
    "old BLIP": ("BLIP", {"image_processor_type": "BlipImageProcessor", "size": 96, "resample": 3}, 96),
    "old DeiT": ("DeiT", {"feature_extractor_type": "DeiTFeatureExtractor", "size": 110, "crop_size": 96}, 96),
    "IDEFICS": ("IDEFICS", {"image_processor_type": "IdeficsImageProcessor", "image_size": 96, "size": None}, 96),
    "sides": ("ViT", {"image_processor_type": "ViTImageProcessorFast", "size": [96, 96]}, 96),
    "stretched CLIP": (
        "GIT",
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": 96, "width": 96},
            "crop_size": {"height": 96, "width": 96},
            "do_center_crop": False,
        },
        96,
    ),
    "larger than the scaled image": (
        "CLIP",
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 51}, "crop_size": 96},
        96,
    ),
    "not normalized": ("ViT", {"image_processor_type": "ViTImageProcessor", "do_normalize": False}, 224),
    "not rescaled": (
        "ViT",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_rescale": False,
            "image_mean": [120, 110, 100.5],
            "image_std": [60, 70, 80],
        },
        224,
    ),
    "as they are": (
        "ViT",
        {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
        224,
    ),
    "rescaled otherwise": (
        "ViT",
        {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5, "image_mean": [1, 1.1, 0.9]},
        224,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_they_are_found(name: str, tmp_path: Path, close: Any) -> None:
    row, values, size = FILES[name]
    write(tmp_path, False, values)
    check(PROCESSORS[row][0].from_pretrained(tmp_path), tmp_path, SAMPLES[:4], size, close)


@pytest.mark.parametrize("row", PROCESSORS)
def test_what_a_file_leaves_out(row: str, tmp_path: Path, close: Any) -> None:
    kind, size = PROCESSORS[row]
    write(tmp_path, False, {"image_processor_type": kind.__name__})
    check(kind(), tmp_path, SAMPLES[:2], size, close)


def test_the_nested_file_counts_where_there_are_both(tmp_path: Path, close: Any) -> None:
    write(tmp_path, False, {"image_processor_type": "ViTImageProcessor", "resample": 0})
    write(tmp_path, True, {"image_processor_type": "ViTImageProcessor", "resample": 1})
    reference = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    check(reference, tmp_path, SAMPLES[:2], 224, close)
    assert read_preprocessing(tmp_path, 224)[0].filter == "lanczos"


CLIP: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "feature_extractor_type is None; mm knows 'BlipImageProcessor'"),
        (
            {"image_processor_type": "VideoMAEImageProcessor"},
            "image_processor_type is 'VideoMAEImageProcessor'; mm kno",
        ),
        (CLIP | {"do_resize": False}, "do_resize is false; a model sees squares of 224 pixels"),
        (CLIP | {"do_center_crop": False}, "do_center_crop is false, but size 224 doesn't give squares"),
        (CLIP | {"crop_size": 256}, "images of 256 pixels, but the model's config.json says 224"),
        (CLIP | {"crop_size": {"height": 224, "width": 200}}, "crop_size is .*, not the side of a square in pixels"),
        (CLIP | {"size": {"shortest_edge": 224, "longest_edge": 300}}, "size has a longest_edge"),
        (CLIP | {"size": {"shortest_edge": 22.5}}, "shortest_edge of size is 22.5, not the side of a square in pixels"),
        (CLIP | {"size": -1}, "size is -1, not the side of a square in pixels"),
        (CLIP | {"resample": 4}, "resample is 4; mm knows 0, 1, 2, 3"),
        (CLIP | {"image_mean": [0.5]}, "image_mean is \\[0.5\\], not three numbers, one per channel"),
        (CLIP | {"image_std": [0.5, "a", 0.5]}, "image_std is .*, not three numbers, one per channel"),
        (CLIP | {"image_std": [0.5, 0, 0.5]}, "image_std .* must be above 0"),
        (CLIP | {"rescale_factor": 0}, "rescale_factor 0.0 .* must be above 0"),
        (CLIP | {"do_normalize": "yes"}, "do_normalize is 'yes', not of type bool"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_mm_does_not_do_is_refused(values: dict[str, Any], nested: bool, message: str, tmp_path: Path) -> None:
    write(tmp_path, nested, values)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_preprocessing(tmp_path, 224)
    assert "processor_config.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither preprocessor_config\.json nor an image_processor in proc"):
        read_preprocessing(tmp_path, 224)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not JSON"):
        read_preprocessing(tmp_path, 224)
