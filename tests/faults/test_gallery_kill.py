"""A gallery survives kill -9 at any moment: committed rows stay, and the search works."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.search import Entry, Gallery

BATCH = 5


class NumberEmbedder:
    """Embeds the number that an image's colour, or a text, stands for as an angle."""

    name = "numbers"
    fingerprint = "1" * 64
    preprocessing = "none"
    dimension = 2

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        pixels = [image.getpixel((0, 0)) for image in images]
        return self._vectors([red * 65536 + green * 256 + blue for red, green, blue in pixels])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors([int(text) for text in texts])

    @staticmethod
    def _vectors(numbers: Sequence[int]) -> np.ndarray:
        angles = np.array(numbers) * (np.pi / 1500)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def numbered(number: int) -> Entry:
    colour = (number >> 16, number >> 8 & 255, number & 255)
    return Entry(b"%d" % number, Image.new("RGB", (8, 8), colour), f"{number}.png", {"en": [f"number {number}"]})


def add_until_killed(path: Path, start: int) -> None:
    """Add images for ever, printing how many are committed; search now and then, to write the index too."""
    with Gallery.open(path, NumberEmbedder(), create=True) as gallery:
        print("open", flush=True)
        for batch in itertools.count(start, BATCH):
            gallery.add([numbered(number) for number in range(batch, batch + BATCH)], batch_size=BATCH)
            print(batch + BATCH, flush=True)
            if batch % 3 == 0:
                gallery.search(str(batch))


def test_killed_many_times(tmp_path: Path) -> None:
    path = tmp_path / "g"
    chance = random.Random(0)
    committed = 0
    for _ in range(6):
        command = [sys.executable, __file__, str(path), str(committed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            for _ in range(chance.randrange(1, 12)):
                process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            reported = [int(line) for line in process.stdout.read().split()]
        assert process.returncode == -signal.SIGKILL
        with Gallery.open(path, NumberEmbedder()) as gallery:
            count = len(gallery)
            assert count >= max([committed, *reported])
            assert count % BATCH == 0
            assert gallery.verify() == []
            assert sorted(gallery.uris()) == sorted(f"{number}.png" for number in range(count))
            for number in {0, count // 2, count - 1}:
                assert gallery.search(str(number), k=1)[0].uri == f"{number}.png"
                assert gallery.text_search(str(number), k=1)[0].uri == f"{number}.png"
            assert len(gallery.search("0", k=10 * count)) == count
        committed = count
    assert committed > 6 * BATCH


if __name__ == "__main__":
    add_until_killed(Path(sys.argv[1]), int(sys.argv[2]))
