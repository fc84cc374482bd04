"""``mm tokenizer``: learns a tokenizer from the captions of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mm.cli import common


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm tokenizer``."""
    parser = common.Parser(prog=program, description="Learn a byte-level BPE tokenizer from the captions of shards.")
    parser.add_argument("data", nargs="+", help="folders, shards or patterns of shards")
    parser.add_argument("--output", required=True, type=Path, help="the tokenizer.json to write")
    parser.add_argument("--vocabulary", type=int, default=5000, help="number of tokens")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"], help="languages, one first token each")
    options = common.parse(parser, arguments)

    from mm.data.datamodule import expand
    from mm.data.manifest import Manifest
    from mm.data.samples import Sample
    from mm.data.shards import read_shard
    from mm.data.tokenizer import Tokenizer, clean_caption
    from mm.errors import DataError, OutputError
    from mm.files import write_whole

    manifest = Manifest.of(expand(options.data))

    def captions() -> Iterator[str]:
        for shard in manifest.shards:
            for item in read_shard(shard.path, shard):
                if isinstance(item, Sample):
                    for language in options.languages:
                        yield from map(clean_caption, item.captions.get(language, []))

    texts = list(captions())
    if not texts:
        wanted = " or ".join(options.languages)
        raise DataError(f"{' '.join(options.data)}: no captions in {wanted} to learn from", "missing caption")
    tokenizer = Tokenizer.train(texts, options.vocabulary, options.languages)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.output, tokenizer.to_json().encode())
    except OSError as error:
        raise OutputError(f"{options.output}: can't be written ({error.strerror})") from error
    print(f"{options.output}: {len(tokenizer)} tokens from {len(texts)} captions")
    return 0
