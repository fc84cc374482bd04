"""Galleries: images indexed to be found by text, by image, or by the words of their captions."""

from __future__ import annotations

from mm.search.gallery import Gallery
from mm.search.items import AddReport, Embedder, Entry, Hit, Item, Problem
from mm.search.record import RecordedModel

__all__ = ["AddReport", "Embedder", "Entry", "Gallery", "Hit", "Item", "Problem", "RecordedModel"]
