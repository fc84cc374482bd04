"""Keys as they are written into shards."""

from __future__ import annotations

from mm.data.samples import printable


def clean_key(key: str) -> str:
    """A key that reads back as it was written: a relative path whose last part has no dot."""
    parts = [
        part for part in printable(key.replace("\\", "/")).replace("\\", "_").split("/") if part not in ("", ".", "..")
    ]
    parts = parts or ["sample"]
    parts[-1] = parts[-1].replace(".", "_")
    if parts[0].startswith("__"):
        parts[0] = parts[0].lstrip("_") or "sample"
    return "/".join(parts)


class UniqueKeys:
    """Keys, each of which is taken once: one that was taken before gets a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of each key, the last number that was tried

    def take(self, key: str) -> str:
        """The key itself, or the first of ``key_2``, ``key_3`` ... that wasn't taken."""
        name, number = key, self._numbers.get(key, 1)
        while name in self._numbers:
            number += 1
            name = f"{key}_{number}"
        self._numbers[key] = number
        self._numbers[name] = self._numbers.get(name, 1)
        return name
