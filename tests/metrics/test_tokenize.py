from __future__ import annotations

import pytest

from mm.errors import OptionError
from mm.metrics.tokenize import tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只狗在草地上奔跑。", "一 只 狗 在 草 地 上 奔 跑"),
        ("穿T恤的男人，看3D电影！", "穿 t 恤 的 男 人 看 3d 电 影"),
        ("ＡＢＣ１２３（狗）、《猫》……“鸟”", "abc123 狗 猫 鸟"),
        ("NBA 比赛 hello-world", "nba 比 赛 hello world"),
        ("𠀀〇々㐀", "𠀀 〇 々 㐀"),
        ("", ""),
        ("。，！ \n", ""),
    ],
)
def test_chinese_is_split_into_characters(caption: str, tokens: str) -> None:
    assert tokenize(caption, "zh") == tokens.split()


def test_english_is_the_default() -> None:
    assert tokenize("It's a dog.") == tokenize("It's a dog.", "en") == ["it", "'s", "a", "dog"]


def test_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'fr'.*en, zh"):
        tokenize("un chien", "fr")
