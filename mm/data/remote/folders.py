"""Shards at remote addresses: how they are named, and their manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from braceexpand import braceexpand

from mm.data.remote.cache import ShardCache
from mm.data.remote.fetching import PIPE, is_web, read_remote
from mm.data.shards.archive import MISSING
from mm.data.shards.entries import ManifestEntry
from mm.data.shards.finding import MANIFEST_NAME
from mm.data.shards.manifest import Manifest
from mm.errors import DataError, ShardError, UsageError

_LARGEST_MANIFEST = 256 << 20  # bytes; a shard takes about 200
_WEB = re.compile(r"([^?#]*/)([^/?#]*)(.*)", re.DOTALL)
# In a command, the last name of the manifest, or else of a shard.
_IN_COMMAND = [
    re.compile(rf"(.*)(?<![\w.+-])({name})(?![\w.+-])(.*)", re.DOTALL)
    for name in (re.escape(MANIFEST_NAME), r"[\w.+-]+\.tar")
]
# What a shell takes as it is, and no program takes for an option.
_PLAIN = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


@dataclass(frozen=True)
class RemoteFolder:
    """Where remote shards and their manifest lie: all that their addresses have in common.

    Args:
        before: what comes before a file's name: ``https://host/shards/``, or a command up to there.
        after: what comes after it: a query like ``?token``, or the rest of the command.
    """

    before: str
    after: str = ""

    def address(self, name: str) -> str:
        """The address of a file in the folder.

        Args:
            name: relative to the folder, with ``/`` between its parts.

        Raises:
            DataError: the folder is read by a command, and a shell wouldn't take the name as it is.
        """
        if self.before.startswith(PIPE) and not _PLAIN.fullmatch(name):
            raise DataError(
                f"{self.before}...: the shard's name {name!r} can't be put into a command; "
                "use only letters, digits, '.', '_', '+' and '-' in it",
                "damaged manifest",
            )
        return self.before + (quote(name) if is_web(self.before) else name) + self.after


def remote_manifest(address: str, cache: ShardCache) -> Manifest:
    """Reads the manifest of remote shards; the shards themselves aren't fetched.

    Args:
        address: of a manifest (``.json``), of the folder that has ``manifest.json``, or of a shard (``.tar``) beside
            which ``manifest.json`` lies. Ranges and lists in braces stand for several: ``{000..099}``, ``{train,val}``.
            In ``pipe:COMMAND``, the command must name ``manifest.json`` or a shard; what prints another file is the
            same command with the other's name in that place.
        cache: where the shards will lie, and how often is tried.

    Returns:
        The shards in the order of the addresses and, within a folder, of its manifest.

    Raises:
        UsageError: there is no manifest, or it isn't an address that can be opened.
        DataError: the manifest is wrong, can't be read, or doesn't list a shard that was named.
    """
    manifests: dict[str, dict[str, ManifestEntry]] = {}
    shards: list[ManifestEntry] = []
    for one in _expand(address):
        folder, name = _split(one)
        index = one if name.endswith(".json") else folder.address(MANIFEST_NAME)
        if index not in manifests:
            manifests[index] = _read(index, folder, cache)
        if not name.endswith(".tar"):
            shards += manifests[index].values()
        elif name in manifests[index]:
            shards.append(manifests[index][name])
        else:
            raise DataError(f"{one}: isn't listed in {index}", MISSING)
    return Manifest(shards)


def _expand(address: str) -> list[str]:
    try:
        return list(braceexpand(address, escape=False))
    except ValueError:
        raise UsageError(f"{address}: a brace has no partner; ranges are written like {{000..099}}") from None


def _split(address: str) -> tuple[RemoteFolder, str]:
    """Splits an address into the folder and the name within it, which is empty where the folder itself is meant."""
    if address.startswith(PIPE):
        parts = next(filter(None, (pattern.fullmatch(address) for pattern in _IN_COMMAND)), None)
        if parts is None:
            raise UsageError(
                f"{address}: names neither {MANIFEST_NAME} nor a shard; write the command that prints the manifest, "
                f"like pipe:curl -sf https://host/shards/{MANIFEST_NAME}"
            )
        before, name, after = parts.groups()
        return RemoteFolder(before, after), name
    parts = _WEB.fullmatch(address) if is_web(address) else re.fullmatch("(.*/)([^/]*)()", address, re.DOTALL)
    assert parts is not None  # there is a slash in every remote address
    before, name, after = parts.groups()
    if name.endswith((".json", ".tar")):
        return RemoteFolder(before, after), unquote(name) if is_web(address) else name
    return RemoteFolder(f"{before}{name}/" if name else before, after), ""


def _read(address: str, folder: RemoteFolder, cache: ShardCache) -> dict[str, ManifestEntry]:
    """The shards of a manifest by name, with their addresses and where they will lie."""
    try:
        content = cache.retries.run(lambda: _content(address), address)
    except ShardError as error:
        if error.reason != MISSING:
            raise
        raise UsageError(
            f"{address}: doesn't exist; remote shards need a manifest beside them, which `mm shards make` writes"
        ) from error
    manifest = Manifest.parse(content, address, cache.folder)
    return {entry.url: _placed(entry, address, folder, cache) for entry in manifest.shards}


def _content(address: str) -> bytes:
    content = bytearray()
    for block in read_remote(address):
        content += block
        if len(content) > _LARGEST_MANIFEST:
            raise UsageError(f"{address}: isn't a manifest: it is larger than {_LARGEST_MANIFEST:,} bytes")
    return bytes(content)


def _placed(entry: ManifestEntry, manifest: str, folder: RemoteFolder, cache: ShardCache) -> ManifestEntry:
    if entry.bytes is None or entry.sha256 is None:
        raise DataError(
            f"{manifest}: 'bytes' or 'sha256' of {entry.url} is missing, by which what comes is verified; "
            "`mm shards make` writes them",
            "damaged manifest",
        )
    return replace(entry, path=cache.place(entry.sha256), remote=folder.address(entry.url))
