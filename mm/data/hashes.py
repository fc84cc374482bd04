"""64-bit hashes, by which contents and keys are compared, ordered and dealt out."""

from __future__ import annotations

import hashlib


def hash64(content: bytes | str) -> int:
    """The first 8 bytes of a SHA-256 as a number, 0 to 2**64 - 1. Splits depend on it: it never changes.

    Args:
        content: bytes, or a text, which is encoded as UTF-8.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
