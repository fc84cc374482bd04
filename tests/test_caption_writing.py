from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import mm
from mm.checkpoints import save_directory
from mm.data.tokenizer import Tokenizer
from mm.errors import CapabilityError, OptionError
from mm.generation import GenerationConfig
from mm.generation.decoder import Decoder
from mm.generation.degenerate import CUT, REPEATS
from mm.models import Architecture
from mm.pipeline import Caption, VisionLanguagePipeline
from mm.pipeline.writing import other_ways

WORDS = tiny.tokenizer()
SAMPLES = Path(__file__).parents[1] / "data/samples"
SAID = [*tiny.COLOURS, "a", "wall", "all of it is"]
GREEDY = GenerationConfig(max_tokens=14)
BEAM = GenerationConfig(max_tokens=14, beams=5)
SAMPLE = GenerationConfig(max_tokens=14, strategy="sample")
STREAMED = {
    "greedy": GREEDY,
    "penalties": replace(GREEDY, repetition_penalty=1.3, no_repeat_ngram=2, min_tokens=6),
    "beam": replace(BEAM, beams=3),
    "groups": replace(BEAM, beams=4, groups=2),
    "sample": replace(SAMPLE, top_p=0.9, seed=3),
    "contrastive": GenerationConfig(max_tokens=14, strategy="contrastive"),
    "required": replace(BEAM, required=("wall",)),
    "forbidden": replace(BEAM, forbidden=("wall", "a")),
}


def made(
    folder: Path,
    seed: int,
    *,
    wordy: bool = True,
    words: Tokenizer = WORDS,
    architecture: Architecture = tiny.ARCHITECTURE,
) -> VisionLanguagePipeline:
    """A random model whose captions depend on the image; a ``wordy`` one writes pieces of a few words only."""
    net = tiny.model(words, architecture, seed)
    with torch.no_grad():
        net.decoder.positions.mul_(60)
        net.text_decoder.embedding.weight.mul_(12)
        if wordy:
            known = [token for word in SAID for ids in words.spellings(word) for token in ids]
            net.decoder.head.bias.fill_(-1000)
            net.decoder.head.bias[[*known, words.end]] = 0
    save_directory(folder, net, words, architecture, "")
    model = mm.load(folder, "cpu")
    assert isinstance(model, VisionLanguagePipeline)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguagePipeline:
    """Greedy search ends in loops for some pictures, is cut for others, and does well for the rest."""
    return made(tmp_path_factory.mktemp("model"), 1)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguagePipeline:
    """Writes any tokens, among them parts of characters."""
    return made(tmp_path_factory.mktemp("bytewise"), 0, wordy=False)


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (9, 50, 60, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def check_stream(model: VisionLanguagePipeline, image: object, config: GenerationConfig, **options: str) -> list[str]:
    """Streams a caption, and makes sure that it is the one that is found otherwise."""
    (caption,) = model.caption(image, config=config, **options)  # type: ignore[arg-type]
    stream = model.stream(image, config=config, **options)  # type: ignore[arg-type]
    pieces, given = [], ""
    assert stream.caption is None
    for piece in stream:
        pieces.append(piece)
        given += piece
        assert piece and caption.text.startswith(given)  # nothing is taken back
    assert given == caption.text and next(stream, None) is None
    assert stream.caption is not None
    assert replace(stream.caption, score=0, log_probability=0, tokens=()) == replace(
        caption, score=0, log_probability=0, tokens=()
    )
    assert stream.caption.log_probability == pytest.approx(caption.log_probability, abs=1e-4)
    assert [token.text for token in stream.caption.tokens] == [token.text for token in caption.tokens]
    return pieces


@pytest.mark.parametrize("prompt", ["", "all of it is", " a  red", "绿色"])
@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_is_the_caption(
    model: VisionLanguagePipeline, bytewise: VisionLanguagePipeline, name: str, prompt: str
) -> None:
    for image in pictures()[:3]:
        assert len(check_stream(model, image, STREAMED[name], prompt=prompt)) > 2
        check_stream(bytewise, image, STREAMED[name], prompt=prompt, language="zh")


@pytest.mark.parametrize("name", ["greedy", "beam", "sample", "contrastive", "required"])
@pytest.mark.parametrize("stop", [" all", "hi", "wall", ("p", "en a", "le")])
@pytest.mark.parametrize("prompt", ["", "a wall", "all wallhi"])
def test_a_stream_ends_before_stop_strings_behind_the_prompt(
    model: VisionLanguagePipeline, name: str, stop: str | tuple[str, ...], prompt: str
) -> None:
    if name == "required" and stop == "wall":
        return  # refused, as tests/generation/test_constrained.py has it
    config = replace(STREAMED[name], stop=stop)
    for image in pictures()[:3]:
        check_stream(model, image, config, prompt=prompt)


@pytest.mark.parametrize("beams", [1, 4])
def test_stop_strings_cut_the_text_and_complete_it(model: VisionLanguagePipeline, beams: int) -> None:
    config, complete = replace(GREEDY, beams=beams, min_tokens=14), 0
    for image in pictures():
        (whole,) = model.caption(image, prompt="a red", config=config)
        assert not whole.complete and whole.problem in (CUT, REPEATS)
        stop = whole.text[8:10]
        (cut,) = model.caption(image, prompt="a red", config=replace(config, stop=stop))
        assert stop not in cut.text[5:] and not (cut.complete and cut.problem == CUT)
        complete += cut.complete
        if beams == 1:  # while other beams may go on without the stop string
            assert cut.complete and len(cut.tokens) < 14
            assert cut.text == whole.text[: whole.text.index(stop, 5)].strip()
        (spared,) = model.caption(image, prompt="a red", config=replace(config, stop="red"))
        assert spared.text.startswith("a red") and len(spared.text) > 8
    assert complete


@pytest.mark.parametrize("language", ["en", "zh"])
def test_streams_of_the_default_model(language: str) -> None:
    model = mm.load("mm-tiny", "cpu")
    assert isinstance(model, VisionLanguagePipeline)
    stops = {"en": " and", "zh": "的"}[language]
    for config in (GREEDY, replace(BEAM, beams=3, stop=stops), replace(SAMPLE, temperature=0.7)):
        for name in ("astronaut", "cat"):
            assert len(check_stream(model, SAMPLES / f"{name}.jpg", config, language=language)) > 1


def test_pieces_come_as_soon_as_all_beams_agree(model: VisionLanguagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, extend = [0], Decoder.extend

    def spy(decoder: Decoder, *arguments: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        return extend(decoder, *arguments)

    monkeypatch.setattr(Decoder, "extend", spy)
    for config, early in ((GREEDY, 10), (replace(BEAM, beams=3), 3)):
        given, all_steps = [], []
        for image in pictures():
            steps[0] = 0
            given.append([steps[0] for _ in model.stream(image, config=config)])
            all_steps.append(steps[0])
        before = [sum(step < last for step in some) for some, last in zip(given, all_steps, strict=True)]
        assert max(before) >= early
    stream = model.stream(pictures()[0], prompt="a wall", config=BEAM)
    steps[0] = 0
    assert next(stream) == "a wall" and steps[0] == 0


def test_what_can_not_be_streamed_is_refused_at_once(model: VisionLanguagePipeline) -> None:
    for options, message in (
        ({"captions": 2}, r"captions 2 can't be streamed"),
        ({"best_of": 3}, r"best_of 3 can't be streamed"),
        ({"max_tokens": 40}, r"max_tokens can be at most"),
        ({"stop": "\ufffd"}, r"stop '\ufffd' is never in the texts of this model"),
        ({"required": "a wall " * 9}, r"required .*more than max_tokens 14"),
    ):
        with pytest.raises(OptionError, match=message):
            model.stream(pictures()[0], config=replace(BEAM, **options))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="doesn't caption in 'fr'"):
        model.stream(pictures()[0], language="fr")


def test_degenerate_captions_are_written_again_in_other_ways(model: VisionLanguagePipeline) -> None:
    plain, retried = (model.caption(pictures(), config=GREEDY, retry=retry) for retry in (False, True))
    assert plain == model.caption(pictures(), config=GREEDY)
    problems = [caption.problem for caption in plain]
    assert {*problems} == {None, REPEATS, CUT} and all(caption.retried is None for caption in plain)
    ways = [str(way) for way in other_ways(GREEDY)]
    helped = 0
    for before, after in zip(plain, retried, strict=True):
        if before.problem is None or after.problem is not None:
            assert after == before  # as it was, or no better in any other way
        else:
            assert after.retried == before.problem and after.strategy in ways and after.text != before.text
            helped += 1
    assert helped
    assert [model.caption(image, config=GREEDY, retry=True)[0].text for image in pictures()] == [
        caption.text for caption in retried
    ]
    assert [one.text for one in model.caption(pictures(), config=GREEDY, retry=True, batch_size=4)] == [
        caption.text for caption in retried
    ]


def test_the_next_way_is_tried_where_one_does_not_help(tmp_path: Path) -> None:
    model = made(tmp_path, 0)
    found = model.caption(pictures(), config=GREEDY, retry=True)
    beam, sample = (str(way) for way in other_ways(GREEDY))
    assert {caption.strategy for caption in found} == {str(GREEDY), beam, sample}
    kept = [caption for caption in found if caption.strategy == str(GREEDY)]
    assert kept and all(caption.problem is not None and caption.retried is None for caption in kept)


def test_without_options_of_decoding_degenerate_captions_are_retried(model: VisionLanguagePipeline) -> None:
    captions = model.caption(pictures())
    assert any(caption.retried for caption in captions)
    assert all(caption.retried is None for caption in model.caption(pictures(), retry=False))


def test_other_ways_keep_what_must_and_must_not_be_said() -> None:
    kept = {"captions": 2, "min_tokens": 3, "max_tokens": 20, "forbidden": ("a dog",), "stop": (".",)}
    beam, sample = other_ways(GenerationConfig(beams=7, repetition_penalty=1.5, no_repeat_ngram=2, **kept))  # type: ignore[arg-type]
    for way in (beam, sample):
        assert {name: getattr(way, name) for name in kept} == kept and way.no_repeat_ngram == 2
    assert (beam.way, beam.beams, beam.repetition_penalty) == ("beam", 7, 1.5) and sample.best_of == 8
    (only,) = other_ways(GenerationConfig(beams=3, required=("cat",)))
    assert only.required == ("cat",) and only.way == "beam"


def test_several_captions_are_the_best_one_s_alternatives(model: VisionLanguagePipeline) -> None:
    one, several = (model.caption(pictures(), config=replace(BEAM, captions=count)) for count in (1, 3))
    for first, best in zip(one, several, strict=True):
        assert replace(best, alternatives=(), strategy="") == replace(first, strategy="")
        assert len({best.text, *map(str, best.alternatives)}) == 3
        scores = [caption.score for caption in (best, *best.alternatives)]
        assert scores == sorted(scores, reverse=True)  # the length penalty is 1
    sampled = model.caption(pictures(), config=replace(SAMPLE, captions=3))
    assert [caption.text for caption in sampled] == [
        caption.text for caption in model.caption(pictures(), config=SAMPLE)
    ]
    assert all(len(caption.alternatives) == 2 for caption in sampled)
    assert len({str(other) for caption in sampled for other in caption.alternatives}) > 9


def judges(model: VisionLanguagePipeline) -> dict[str, Callable[[Image.Image, Caption], float]]:
    return {
        "likelihood": lambda image, caption: caption.score,
        "match": lambda image, caption: float(model.match(image, caption.text)[0, 0]),
        "similarity": lambda image, caption: float(
            (model.embed_images(image) @ model.embed_text(caption.text).T)[0, 0]
        ),
    }


@pytest.mark.parametrize("rank_by", ["likelihood", "match", "similarity", "consensus"])
@pytest.mark.parametrize("way", [BEAM, SAMPLE])
@pytest.mark.parametrize("stop", [(), ("all",)])
def test_captions_are_ranked_as_asked_for(
    model: VisionLanguagePipeline, rank_by: str, way: GenerationConfig, stop: tuple[str, ...]
) -> None:
    config = replace(way, best_of=5, captions=5, rank_by=rank_by, stop=stop)  # type: ignore[arg-type]
    found = model.caption(pictures()[:4], config=config, prompt="a")
    judge = judges(model).get(rank_by)
    changed = 0
    for image, best in zip(pictures(), found, strict=False):
        captions = [best, *best.alternatives]
        if judge is not None:
            scores = [judge(image, caption) for caption in captions]
            assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        (unranked,) = model.caption(image, config=replace(way, captions=5, stop=stop), prompt="a")
        texts = [caption.text for caption in captions]
        as_found = [str(caption) for caption in (unranked, *unranked.alternatives)]
        assert sorted(texts) == sorted(as_found)
        changed += texts != as_found
    assert changed or (rank_by == "likelihood" and way is BEAM)
    best_alone = model.caption(pictures()[:4], config=replace(config, captions=1), prompt="a")
    assert [caption.text for caption in best_alone] == [caption.text for caption in found]
    assert not any(caption.alternatives for caption in best_alone)


def test_ranking_needs_a_model_that_can(model: VisionLanguagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "capabilities", ("caption",))
    for rank_by, capability in (("match", "match"), ("similarity", "embed")):
        config = replace(BEAM, best_of=3, rank_by=rank_by)  # type: ignore[arg-type]
        for act in (model.caption, model.stream):
            with pytest.raises(CapabilityError, match=f"can't {capability}"):
                act(pictures()[0], config=config)


@pytest.mark.parametrize("name", [*STREAMED, "stop"])
def test_probabilities_of_tokens_are_that_of_the_caption(model: VisionLanguagePipeline, name: str) -> None:
    config = STREAMED.get(name, replace(GREEDY, stop=("en", "hile")))
    ended = 0
    for caption in model.caption(pictures(), config=config, prompt="a red"):
        product = math.prod(token.probability for token in caption.tokens)
        assert product == pytest.approx(math.exp(caption.log_probability), rel=1e-4)
        assert caption.score == pytest.approx(caption.log_probability / len(caption.tokens))
        assert all(0 < token.probability <= 1 for token in caption.tokens)
        *words, last = caption.tokens
        assert "<end>" not in [word.text for word in words]
        ended += last.text == "<end>"
        assert caption.complete == (last.text == "<end>") or name == "stop"
        if last.text == "<end>":
            assert caption.text.replace(" ", "") == "ared" + "".join(word.text for word in words).replace("Ġ", "")
    assert ended or name in ("required", "forbidden", "stop")


def test_a_draft_changes_no_caption_of_greedy_search(model: VisionLanguagePipeline, tmp_path: Path) -> None:
    other = made(tmp_path / "other", 2)
    prompts = ["", "a", "all of it is", "", "a red wall", "", "", "a", "all"]
    for config in (GREEDY, replace(GREEDY, draft_tokens=2, stop="wall", repetition_penalty=1.2)):
        for draft in (other, model):
            found = model.caption(pictures(), prompt=prompts, config=config, draft=draft, batch_size=5)
            expected = model.caption(pictures(), prompt=prompts, config=replace(config, draft_tokens=4))
            assert [caption.text for caption in found] == [caption.text for caption in expected]
            for one, same in zip(found, expected, strict=True):
                assert one.log_probability == pytest.approx(same.log_probability, abs=1e-3)
                assert (one.problem, one.complete) == (same.problem, same.complete)


def test_captions_sampled_with_a_draft_do_not_depend_on_the_batch(
    model: VisionLanguagePipeline, tmp_path: Path
) -> None:
    draft = made(tmp_path / "other", 2)
    together = model.caption(pictures(), config=SAMPLE, draft=draft)
    apart = [model.caption(image, config=SAMPLE, draft=draft)[0].text for image in pictures()]
    assert [caption.text for caption in together] == apart and len({*apart}) > 4


def test_degenerate_captions_are_retried_without_the_draft(model: VisionLanguagePipeline, tmp_path: Path) -> None:
    draft = made(tmp_path / "other", 2)
    found = model.caption(pictures(), config=GREEDY, draft=draft, retry=True)
    assert [one.text for one in found] == [one.text for one in model.caption(pictures(), config=GREEDY, retry=True)]


def test_a_draft_that_does_not_go_with_the_model_is_named(model: VisionLanguagePipeline, tmp_path: Path) -> None:
    image = pictures()[0]
    words = made(tmp_path / "words", 0, words=tiny.tokenizer(290))
    larger = made(tmp_path / "larger", 0, architecture=replace(tiny.ARCHITECTURE, image_size=64))
    shorter = made(tmp_path / "shorter", 0, architecture=replace(tiny.ARCHITECTURE, max_tokens=12))
    for draft, message in (
        (words, f"draft {words.name} has another tokenizer than {model.name}"),
        (larger, f"draft {larger.name} sees images as .*64x64.*, {model.name} as .*32x32"),
        (shorter, "12 tokens of the draft model"),
    ):
        with pytest.raises(OptionError, match=message):
            model.caption(image, config=GREEDY, draft=draft)
    for options, message in (
        ({"beams": 3}, "draft doesn't act in strategy beam"),
        ({"strategy": "sample", "captions": 2}, "draft and captions 2 can't be combined"),
        ({"draft_tokens": 3}, "draft_tokens 3 acts with a draft alone"),
    ):
        draft = None if "draft_tokens" in options else model
        with pytest.raises(OptionError, match=message):
            model.caption(image, config=replace(GREEDY, **options), draft=draft)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [BEAM, SAMPLE])
def test_images_made_ready_give_the_captions_of_their_files(
    model: VisionLanguagePipeline, tmp_path: Path, config: GenerationConfig
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, pictures(), strict=False):
        image.save(path)
    ready = [model.ready(path) for path in paths]
    assert all(pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32) for pixels in ready)
    assert model.caption(ready, config=config) == model.caption(paths, config=config)
    assert model.caption(ready[0], config=config) == model.caption(paths[0].read_bytes(), config=config)
    stream = model.stream(ready[0], config=config)
    assert "".join(stream) == model.caption(pictures()[0], config=config)[0].text


def test_what_would_be_ignored_is_refused(model: VisionLanguagePipeline) -> None:
    image = pictures()[0]
    with pytest.raises(OptionError, match="batch_size must be at least 1, not -1"):
        model.caption(image, batch_size=-1)
    with pytest.raises(OptionError, match=r"beams must be between 1 and 1024, not 1000000"):
        GenerationConfig(beams=1_000_000)


def test_captions_that_may_not_end_are_not_written_again(model: VisionLanguagePipeline) -> None:
    forced = replace(GREEDY, min_tokens=5, max_tokens=5)
    for caption in model.caption(pictures(), config=forced, retry=True):
        assert caption.retried != CUT
