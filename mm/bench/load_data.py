"""The images that loading is measured with: in shards, and the same ones as files in a folder."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm.data.opening import find_manifest
from mm.data.samples import Sample
from mm.data.shards.manifest import Manifest, ManifestEntry
from mm.data.shards.tar import IMAGE_SUFFIXES
from mm.data.shards.writing import write_shards
from mm.errors import DataError

CAPTION = "a picture of nothing, number {}"


@dataclass(frozen=True)
class Collection:
    """Images to load.

    Args:
        name: what they are.
        sources: what names their shards.
        manifest: the shards, which are local.
        folder: the same images as files, in a folder of a folder.
        batch_size: images in a batch.
    """

    name: str
    sources: tuple[str, ...]
    manifest: Manifest
    folder: Path
    batch_size: int

    @property
    def images(self) -> int:
        """The number of images."""
        return self.manifest.total

    @property
    def shards(self) -> list[str]:
        """The paths of the shards."""
        return [str(shard.path) for shard in self.manifest.shards]


def make_collection(name: str, photos: Iterable[bytes], folder: Path, batch_size: int, shards: int) -> Collection:
    """Writes image files into shards with a manifest, and into a folder.

    Args:
        name: what they are.
        photos: the image files.
        folder: where; made.
        batch_size: images in a batch.
        shards: how many shards there are, at least one image in each.
    """
    samples = [Sample(f"{n:06d}", f"{name}/{n}", data, {"en": [CAPTION.format(n)]}) for n, data in enumerate(photos)]
    manifest = write_shards(samples, folder / "shards", max_samples=max(1, len(samples) // shards))
    return Collection(name, (str(folder / "shards"),), manifest, unpack(manifest, folder / "files"), batch_size)


def open_collection(sources: Sequence[str], folder: Path, batch_size: int) -> Collection:
    """Takes shards that are there, and writes their images into a folder.

    Args:
        sources: folders, shards or patterns of shards.
        folder: where; made.
        batch_size: images in a batch.

    Raises:
        UsageError: a source doesn't exist.
        DataError: the shards hold fewer images than a batch, or are remote.
    """
    manifest = find_manifest(sources)
    if any(shard.remote for shard in manifest.shards):
        raise DataError(f"{' '.join(sources)}: loading is measured with local shards", "remote shards")
    if manifest.total < 2 * batch_size:
        raise DataError(
            f"{' '.join(sources)}: {manifest.total} images are too few, {2 * batch_size} are needed", "too few images"
        )
    return Collection(" ".join(sources), tuple(sources), manifest, unpack(manifest, folder / "files"), batch_size)


def unpack(manifest: Manifest, folder: Path) -> Path:
    """Writes the images of shards into a subfolder, as numbered files, and gives the folder."""
    (folder / "all").mkdir(parents=True)
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(shard.path) as tar:
            for place, member in enumerate(tar):
                suffix = member.name.rpartition(".")[2].lower()
                file = tar.extractfile(member) if suffix in IMAGE_SUFFIXES else None
                if file is not None:
                    (folder / "all" / f"{number:06d}-{place:06d}.{suffix}").write_bytes(file.read())
    return folder


def simulate_shards(photos: Sequence[bytes], folder: Path, count: int) -> Path:
    """Makes a split of very many small shards, each a copy of one, with a manifest.

    Args:
        photos: the images of each shard.
        folder: where; made.
        count: how many shards.

    Returns:
        The folder.
    """
    samples = [Sample(f"{n:06d}", f"{n}", data, {"en": [CAPTION.format(n)]}) for n, data in enumerate(photos)]
    first = write_shards(samples, folder).shards[0]
    entries = [first]
    for number in range(1, count):
        path = folder / f"shard-{number:06d}.tar"
        shutil.copyfile(first.path, path)
        entries.append(ManifestEntry(path.name, path, len(photos), first.bytes, first.sha256))
    Manifest(entries).write(folder)
    return folder
