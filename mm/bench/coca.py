"""A CoCa of open_clip with random weights, and the two sides that caption with it."""

from __future__ import annotations

from pathlib import Path

import torch

from mm.bench.checkpoint import random_images, randomize
from mm.bench.comparison import OWN, Side, Tick, Timing, open_own, time_case
from mm.bench.peers import Case, OpenClipCoca, Subject

ARCHITECTURE = "coca_ViT-B-32"
CASES = tuple(Case(images, beams, 21) for images in (1, 8) for beams in (1, 3))
PEER = "open_clip"
LOGITS = 10.0
"""What the map to logits is multiplied with: it has (D, V) weights, of which D, not V, are summed up."""


def compare_coca(folder: Path, device: torch.device, repeats: int, tick: Tick) -> dict[Case, dict[Side, Timing]]:
    """Times the ``generate`` of open_clip beside mm's on the same weights, in float32.

    open_clip ends every caption with the end token where the length limit is reached, and its beam search adds logits
    up, not log-probabilities: its captions of beam search aren't mm's.

    Args:
        folder: where the weights are written; it exists.
        device: where.
        repeats: how often each case is timed.
        tick: called with 1 after each work.
    """
    import open_clip

    peer = OpenClipCoca(open_clip.create_model(ARCHITECTURE), device)
    randomize(peer.model, seed=0)
    peer.model.text_decoder.text_projection.data.mul_(LOGITS)
    weights = folder / "coca.pt"
    torch.save(peer.model.state_dict(), weights)
    own = open_own(f"open_clip:{ARCHITECTURE}/{weights}", "float32", device)
    subjects: dict[Side, Subject] = {Side(PEER, "float32"): peer, Side(OWN, "float32"): own}
    size = peer.model.visual.preprocess_cfg["size"]
    images = random_images(max(case.images for case in CASES), size[0] if isinstance(size, tuple) else size)
    return {case: time_case(subjects, case, images.to(device), repeats, tick) for case in CASES}
