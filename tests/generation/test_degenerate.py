from __future__ import annotations

import pytest
import spelled

from mm.generation.degenerate import CUT, NO_CONTENT, REPEATS, degenerate

WORDS = spelled.tokenizer("mm")


def found(text: str, language: str = "en", complete: bool = True) -> str | None:
    return degenerate(text, WORDS.encode([text])[0], complete, language)


@pytest.mark.parametrize(
    "text",
    [
        "a dog and a dog and a dog",
        "on the on the on the",
        "a tall man standing on the on the on a beach",
        "dogs run on grass dogs run on grass",
        "two brown dogs run in the snow near trees in the snow near trees by a lake",
        "the the the",
        "A dog, a dog, a dog.",
        "a man in a shirt with a man in a shirt near a man in a shirt",
        "a dog runs on the grass a dog runs on the grass",
        "two people are standing in front of a building in front of a building in front of a",
        "a dog . . . . .",
        "ha ha hahahahahahaha",
    ],
)
def test_english_captions_that_repeat_themselves(text: str) -> None:
    assert found(text) == found(text, "en-GB") == found(text, "en", complete=False) == REPEATS


@pytest.mark.parametrize(
    "text", ["一只狗一只狗一只狗", "一个人和一个人和一个人", "的的的的", "狗狗狗狗在跑", "红色的红色的红色的"]
)
def test_chinese_captions_that_repeat_themselves(text: str) -> None:
    assert found(text, "zh") == found(" ".join(text), "zh") == REPEATS


@pytest.mark.parametrize("text", ["", " ", "...", "the of a", "There is.", "it's on the", "a - a"])
def test_english_captions_without_content(text: str) -> None:
    assert found(text) == found(text, "en_US") == NO_CONTENT


@pytest.mark.parametrize("text", ["", "。", "一个", "在它的上面", "这是我的"])
def test_chinese_captions_without_content(text: str) -> None:
    assert found(text, "zh") == found(text, "zh-Hant", complete=False) == NO_CONTENT


@pytest.mark.parametrize(
    "text",
    [
        "a man in a red shirt and a man in a blue shirt",
        "A black and white dog jumps through a black and white hoop .",
        "A man in a white shirt and a man in a black shirt in a hallway .",
        "A brown dog wearing a pink shirt is followed by a brown dog wearing a yellow shirt .",
        "A soccer player in red being tackled by a soccer player in green .",
        "A man in a white tank top , blue jeans and glasses sitting on a rock with a woman in a white tank top , "
        "blue jeans and glasses standing over him .",
        "A very very wide roller coaster trundles down the track .",
        "Two dogs , one brown and one brown and white , running in a yard .",
        'A man walks by a red telephone booth that says , " ring ring " .',
        "dogs",
        "a dog and a dog",
        "A dog runs ...",
    ],
)
def test_english_captions_that_people_write(text: str) -> None:
    assert found(text) is None and found(text, complete=False) == CUT


@pytest.mark.parametrize(
    "text",
    [
        "一个小女孩抱着一个小女孩。",
        "红头发的女孩和黑头发的女孩。",
        "一名服务生亲了另一名服务生。",
        "一个穿红衣服的男人和一个穿蓝衣服的男人",
        "两只瘦瘦的狗。",
        "一个女子扶着宝宝在玩耍。",
        "一只狗追一只狗。",
        "有三个人分别骑着越野摩托车摩托车自行车。",
        "三个人",
    ],
)
def test_chinese_captions_that_people_write(text: str) -> None:
    assert found(text, "zh") is None and found(text, "zh", complete=False) == CUT


def test_in_other_languages_every_word_is_content() -> None:
    assert found("der", "de") is None and found("the of a", "de") is None
    assert found("...", "de") == found("", "de") == found("—", "fr") == NO_CONTENT
    assert found("der Hund und der Hund und der Hund", "de") == REPEATS


def test_tokens_tell_of_loops_that_a_text_does_not_show() -> None:
    assert degenerate("a dog", [7, 8, 300, 300, 300, 300], True, "en") == REPEATS
    assert degenerate("a dog", [7, 8, 300, 300, 300, 9], True, "en") is None
    assert degenerate("a dog", [7, 8, 9] * 4, True, "en") == REPEATS
