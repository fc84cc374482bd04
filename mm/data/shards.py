"""WebDataset shards: read in order or by position."""

from __future__ import annotations

from mm.data.reading import IndexedShards, read_shard

__all__ = ["IndexedShards", "read_shard"]
