from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from mm.bench.load_photos import make_photos


def test_photos_depend_on_nothing_but_the_arguments() -> None:
    photos = list(make_photos(3, 64, 48))
    assert photos == list(make_photos(3, 64, 48)) and len(set(photos)) == 3
    assert photos != list(make_photos(3, 64, 48, seed=1))
    for photo in photos:
        image = Image.open(BytesIO(photo))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))


def test_files_are_as_large_as_those_of_cameras() -> None:
    for width, height in ((224, 224), (1200, 900)):
        (photo,) = make_photos(1, width, height)
        assert 1.5 < 8 * len(photo) / (width * height) < 3


def test_octaves_hold_the_same_energy() -> None:
    (photo,) = make_photos(1, 512, 512)
    grey = np.asarray(Image.open(BytesIO(photo)).convert("L")).astype(float)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean()))) ** 2
    rows, columns = np.indices(spectrum.shape) - 256
    distance = np.hypot(rows, columns)
    fine = [spectrum[(distance >= low) & (distance < 2 * low)].sum() for low in (32, 64, 128)]
    assert max(fine) < 4 * min(fine)  # of white noise, an octave has four times as much as the one below
