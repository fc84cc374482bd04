"""WebDataset shards: read in order or by position, written, and checked."""

from __future__ import annotations

from mm.data.checking import ShardReport, check_shards
from mm.data.reading import IndexedShards, read_shard
from mm.data.writing import write_shards

__all__ = ["IndexedShards", "ShardReport", "check_shards", "read_shard", "write_shards"]
