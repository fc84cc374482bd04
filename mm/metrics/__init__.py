"""Metrics: captions against references, and retrieval in both directions."""

from mm.metrics.captioning import score_captions
from mm.metrics.retrieval import ranks, retrieval_metrics, summarize_ranks
