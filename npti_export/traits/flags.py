"""What a person should look at again in a trait's personas and questions: near duplicates, and ones that tell too much.

Rules of thumb, measured on the 2,500 shipped questions: no two of one trait share 0.6 of their words, and 1.2 % hold a
word of their trait's description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from npti_export.traits.trait import Pole, Trait
from npti_export.traits.trait_file import OwnTrait

SAME_WORDS = 0.6
"""Share of all their words that two texts have in common from which on they count as duplicates."""
STEM = 6
"""Letters by which words count as forms of one: formal, formality."""
SHORTEST = 5
"""Letters of a word that can give a pole away; shorter ones are most often and, with, from."""
_WORD = re.compile(r"[^\W\d_]+")
_LEADING = re.compile(
    r"\b(why (do|are|don't|aren't) you|don't you|aren't you|isn't it|do you (love|hate|always|never)|as an? \w+ person|"
    r"are you an? |would you (say|call) you|consider yourself)",
    re.IGNORECASE,
)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "about after again always because before being every everyone everything often other others people rather "
        "seldom their there these thing things those through under until where which while would yourself",
    )
)


def flags(own: OwnTrait) -> dict[str, str]:
    """What to look at again, by the text of a question or persona.

    Args:
        own: The trait.

    >>> from npti_export.traits.material import Question
    >>> wit = Trait("wit", "funny, fond of jokes", "earnest and literal", ())
    >>> questions = (Question("wit", "Which jokes do you tell at work?"), Question("wit", "How was the bus ride?"))
    >>> flags(OwnTrait(wit, questions=questions))
    {'Which jokes do you tell at work?': "gives the trait away by 'jokes'"}
    """
    questions = [question.text for question in [*own.questions, *own.test_questions]]
    found: dict[str, str] = {}
    for question in questions:
        if reason := _gives_away(question, own.trait):
            found[question] = reason
    for texts in (questions, [persona.text for persona in own.personas]):
        for text, earlier in _duplicates(texts):
            found.setdefault(text, f"nearly the same as {_shown(earlier)}")
    return found


def missing(own: OwnTrait, least_questions: int) -> list[str]:
    """What a trait still needs before it can be identified and evaluated, a clause each.

    Args:
        own: The trait.
        least_questions: How many questions identification needs.
    """
    lacking = [f"personas of the {pole} pole" for pole in Pole if not own.personas_of(pole)]
    if not own.trait.facets:
        lacking.insert(0, "facets")
    if len(own.questions) < least_questions:
        lacking.append(
            f"{least_questions - len(own.questions)} more questions (identification needs {least_questions})"
        )
    if not own.test_questions:
        lacking.append("test_questions (eval asks them)")
    return lacking


def _gives_away(question: str, trait: Trait) -> str | None:
    """Why a question says which answer is wanted; None where it does not seem to."""
    if leading := _LEADING.search(question.replace("’", "'")):
        return f"leads to an answer by {leading[0].strip()!r}"
    telling = (_stems([trait.high]) ^ _stems([trait.low])) | _stems([trait.name.replace("_", " ")])
    words = [word for word in _words(question) if word[:STEM] in telling and len(word) >= SHORTEST]
    return f"gives the trait away by {words[0]!r}" if words else None


def _duplicates(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Texts that nearly repeat an earlier one, with that one."""
    words = [frozenset(_words(text)) for text in texts]
    for at, mine in enumerate(words):
        for earlier, theirs in zip(texts[:at], words[:at], strict=True):
            if mine and len(mine & theirs) >= SAME_WORDS * len(mine | theirs):
                yield texts[at], earlier
                break


def _stems(texts: Iterable[str]) -> set[str]:
    words = {word for text in texts for word in _words(text)}
    return {word[:STEM] for word in words - _COMMON if len(word) >= SHORTEST}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
