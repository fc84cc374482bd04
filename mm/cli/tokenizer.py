"""``mm tokenizer``: learns a tokenizer from the captions of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm.cli import common
from mm.data.samples import Tally
from mm.data.tokenizer import Tokenizer, clean_caption
from mm.files import make_folder, write_whole


def run(arguments: Sequence[str], program: str) -> int:
    """Runs ``mm tokenizer``."""
    parser = common.Parser(prog=program, description="Learn a byte-level BPE tokenizer from the captions of shards.")
    parser.add_argument("data", nargs="+", help="folders, shards or patterns of shards")
    parser.add_argument("--output", required=True, type=Path, help="the tokenizer.json to write")
    parser.add_argument("--vocabulary", type=int, default=5000, help="number of tokens")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"], help="languages, one first token each")
    common.add_json(parser)
    options = common.parse(parser, arguments)
    Tokenizer.train([], options.vocabulary, options.languages)  # options that can't be met end here

    from mm.data.opening import find_manifest

    manifest = find_manifest(options.data)
    make_folder(options.output.parent)
    common.check_writable(options.output)

    tally = Tally()
    texts = [
        clean_caption(text)
        for sample in tally.accept(common.captioned(manifest, options.languages))
        for language in options.languages
        for text in sample.captions.get(language, [])
    ]
    figures, problem = {"tokens": 0, "captions": len(texts), "rejected": tally.rejected}, None
    if texts:
        tokenizer = Tokenizer.train(texts, options.vocabulary, options.languages)
        try:
            write_whole(options.output, tokenizer.to_json().encode())
            figures["tokens"] = len(tokenizer)
        except OSError as error:
            problem = f"{program}: {options.output}: can't be written ({error.strerror})"
    else:
        wanted = " or ".join(options.languages)
        problem = f"{program}: {' '.join(options.data)}: no captions in {wanted} to learn from"
    return common.report(str(options.output), figures, tally, as_json=options.json, problem=problem)
