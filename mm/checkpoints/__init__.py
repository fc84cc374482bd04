"""Models on disk: the model directory of mm, its training checkpoints, and weights from elsewhere."""

from mm.checkpoints.backbones import load_stem_weights
from mm.checkpoints.directory import Loaded, load_checkpoint, load_directory, save_directory

__all__ = ["Loaded", "load_checkpoint", "load_directory", "load_stem_weights", "save_directory"]
