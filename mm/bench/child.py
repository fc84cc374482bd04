"""A process of its own that loads a checkpoint, captions one case, and prints the most memory that took."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import torch

from mm.bench.checkpoint import random_images
from mm.bench.comparison import Side, open_side
from mm.bench.measure import own_peak
from mm.bench.peers import Case
from mm.models.precision import Precision


def main(library: str, precision: str, folder: str, device: str, *numbers: str) -> None:
    """Captions one case.

    Args:
        library: ``mm`` or a peer.
        precision: what it computes in.
        folder: the checkpoint.
        device: where.
        numbers: images, beams, tokens, image size, and threads.
    """
    images, beams, tokens, size, threads = map(int, numbers)
    torch.set_num_threads(threads)
    place = torch.device(device)
    subject = open_side(Side(library, cast(Precision, precision)), Path(folder), place)
    subject.caption(random_images(images, size).to(place), Case(images, beams, tokens))
    print(own_peak(place))


if __name__ == "__main__":
    main(*sys.argv[1:])
