"""Penn Treebank tokenization of English captions, as the COCO caption toolkit does it.

The toolkit calls Stanford's PTBTokenizer 3.4.1 (Java), lower-cases the tokens and removes punctuation. The rules here
give the same tokens for caption-like text, peculiarities included: brackets and runs of "!" and "?" stay as tokens,
"dog.cat" is one token, and "inc." keeps its period while "wash." loses it.
"""

from __future__ import annotations

import re

# Characters that count as letters or digits in Python but not in the Treebank's rules.
_NUMBER_SIGNS = "²³¹¼½¾⁰-₟⅐-↏①-⓿"
_LETTER = rf"[^\W\d_{_NUMBER_SIGNS}]"
_ALNUM = rf"[^\W_{_NUMBER_SIGNS}]"
_APOSTROPHE = "['’]"
_WORD = rf"{_ALNUM}+(?:_{_ALNUM}+)*"
_ACRONYM = rf"{_LETTER}(?:\.{_LETTER})+(?:\.(?!{_ALNUM})|(?!\.?{_ALNUM}))"
_HYPHENATED = rf"(?:[-‐‑](?:{_ACRONYM}|{_WORD}))"
_END = rf"(?![-/]?{_ALNUM}|{_APOSTROPHE}s)"
_ASCII_WORD = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_URL_BODY = r"[^\s\"<>|()]*[^\s\"<>|().,!?:;'-]"

# Abbreviations that keep their period.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov
    govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme
    mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty
    ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas
    tue tues univ va vs vt wed wis wisc wm wyo
"""
# These too, but only when capitalized or before ",", ":" or ";": in lower case they are words.
_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# These too, but only before a number, or before ",", ":" or ";".
_NUMBERED = "art ca fig figs no nos op pp prop"
# Words that start a sentence: a single letter before one of them ends a sentence and isn't an initial.
_SENTENCE_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
_TOP_LEVEL_DOMAINS = "com net org edu gov mil int info biz us uk de jp"


def _any_of(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


# In order: the first alternative that matches at a position makes the token.
_RULES = [
    # A plain word, which most are. The rest is tried only when this fails.
    r"(?!(?i:cannot|gimme|lemme|gonna|wanna|gotta)\s)[A-Za-z]+(?=\s)",
    # Markup, addresses, names of the web.
    r"<[/!]?[A-Za-z][^<>]*>",
    rf"(?:https?://|www\.){_URL_BODY}",
    r"[A-Za-z0-9][^\s\"<>|()@]{0,63}@[^\s\"<>|()@]*[^\s\"<>|()@.]",
    rf"[A-Za-z][A-Za-z0-9]+(?:\.[A-Za-z0-9-]+)*\.(?i:{_any_of(_TOP_LEVEL_DOMAINS)})/{_URL_BODY}",
    r"&\#\d+;",
    rf"\#{_LETTER}+|@{_LETTER}[A-Za-z0-9_]*",
    rf"(?:[<>]?[:;=]-?[()DPpOo\]]|\^_\^)(?!{_ALNUM})",
    # Decades and clipped words that begin with an apostrophe.
    "''",
    rf"{_APOSTROPHE}[2-9]0s(?!{_ALNUM})|{_APOSTROPHE}\d\d(?=\s|$)",
    rf"(?i:’n’?|'n'|'n(?!{_LETTER})|{_APOSTROPHE}(?:em|till?|cause(?!{_LETTER})))",
    rf"(?i:'t(?=is|was(?!{_LETTER})))",
    rf"(?i:'(?:s|m|d|ll|re|ve)(?!{_LETTER})|’(?:s|m|d|ll|re|ve))",
    # Words written together, and words with an apostrophe inside.
    rf"(?i:(?:can(?=not{_END})|(?:gim|lem)(?=me{_END})|(?:gon|wan)(?=na{_END})|got(?=ta{_END})))",
    rf"(?i:(?:dunkin|somethin){_APOSTROPHE}(?!{_LETTER})|li'l|ol{_APOSTROPHE}(?!{_LETTER})"
    rf"|c{_APOSTROPHE}mon|s{_APOSTROPHE}mores?|ev{_APOSTROPHE}ry|e{_APOSTROPHE}er)(?!{_ALNUM})",
    rf"(?i:{_LETTER}+?(?=n{_APOSTROPHE}t)|n{_APOSTROPHE}t(?!{_LETTER}))",
    rf"(?i:[dlno]{_APOSTROPHE}(?!(?:s|m|d|ll|re|ve)(?!{_LETTER})){_LETTER}{_ALNUM}*{_HYPHENATED}*)",
    rf"(?i:[jy]{_APOSTROPHE}(?!(?:s|m|d|ll|re|ve)(?!{_LETTER}))(?={_LETTER})|[djl]{_APOSTROPHE}(?!{_LETTER}))",
    rf"(?i:{_LETTER}+[aeiouy]{_APOSTROPHE}[aeiou]{_LETTER}*)",
    # Abbreviations, acronyms, names of files.
    rf"{_ACRONYM}{_HYPHENATED}*",
    rf"(?i:ph\.d\.)|{_LETTER}\.(?!{_LETTER})(?!\s+{_any_of(_SENTENCE_STARTERS)}(?=\s|$))",
    rf"{_LETTER}{_ALNUM}*(?:\.{_LETTER}{_ALNUM}*)+{_HYPHENATED}+",
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",
    rf"(?:(?i:{_any_of(_ABBREVIATIONS)})"
    rf"|{_any_of(_STATES + ' ' + _STATES.upper())})"
    rf"\.(?:-{_ALNUM}{_WORD}{_HYPHENATED}*)?",
    rf"(?i:{_any_of(_NUMBERED)})\.(?=\s*\d)",
    rf"(?i:{_any_of(_NUMBERED + ' ' + _STATES)})\.(?=[,:;])",
    r"[A-Z]+(?:&[A-Z]+)+|(?:US|HK|NT|NZ|A|C|S)\$|[Cc]\+\+|[CcFf]\#",
    # Numbers and words.
    rf"{_ASCII_WORD}/{_ASCII_WORD}(?:/{_ASCII_WORD})?",
    rf"\d+(?:[.,]\d+)+{_HYPHENATED}+|\d+(?:[.,:]\d+)+",
    rf"{_WORD}{_HYPHENATED}*",
    r"\(\d{3}\)\s?\d{3}[- ]?\d{4}",
    r"--+|\.{3,}|[-+]?\d+(?:[.,:]\d+)*|[-+]?(?:[.,:]\d+)+",
    # The rest, runs first.
    r"_+|[!?]+|\*+|\#+|@+|<<|>>|\S",
]
_TOKEN = re.compile("|".join(_RULES))

_REPLACEMENTS = str.maketrans(
    {
        "½": " 1/2 ",
        "¼": " 1/4 ",
        "¾": " 3/4 ",
        "⅓": " 1/3 ",
        "⅔": " 2/3 ",
        "€": " $ ",
        "£": " # ",
        "¢": " cents ",
        "…": " ",
        "\xad": "",
    }
    # Joiners, direction marks and variation selectors separate words and make no token.
    | dict.fromkeys([*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0xFE00, 0xFE10), 0xFEFF], " ")
)
_OUTSIDE_BASIC_PLANE = re.compile("[^\u0000-\uffff]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))

_PARENTHESES = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_SPELLED = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLED |= {word.replace("'", "’"): word for word in ("'s", "'m", "'d", "'ll", "'re", "'ve", "n't")}
_DROPPED = frozenset(".,:;!?-‐‑‒–—―'’‘‛\"“”`«»‹›₹《》「」") | {"''", "--", "---"}


def ptb_tokenize(text: str) -> list[str]:
    """Split an English caption into lower-case Penn Treebank tokens without punctuation.

    Marcus, Santorini and Marcinkiewicz, "Building a Large Annotated Corpus of English: The Penn Treebank",
    Computational Linguistics 19, 1993.

    Args:
        text: the caption.

    Returns:
        The tokens; none of them is empty or contains whitespace.
    """
    text = _OUTSIDE_BASIC_PLANE.sub(" ", text.translate(_REPLACEMENTS))
    if "&" in text:
        text = _ENTITY.sub(lambda match: _ENTITIES[match[0]], text)
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        if token not in _DROPPED and not token.startswith("..."):
            lowered = token.translate(_PARENTHESES).lower()
            tokens += _SPELLED.get(lowered, lowered).split()
    return tokens
