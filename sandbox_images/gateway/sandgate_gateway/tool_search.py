"""Ranking tools by a few words: BM25 over their names and descriptions. Pure.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the usual k1 and b. A name
counts as if it were written several times. A word of the query also finds longer words that start with it, for less.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

_K1 = 1.2
_B = 0.75
_NAME_WEIGHT = 3
_PREFIX_FACTOR = 0.5
_MIN_PREFIX = 3

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words(text: str) -> list[str]:
    """Lower-case words in the singular: `listPull_requests` is list, pull, request."""
    return [_singular(part.lower()) for word in _WORD.findall(text) for part in _HUMP.split(word)]


class ToolIndex:
    """Built once for a set of tools; a search looks only at tools that have one of the words."""

    def __init__(self, tools: Iterable[tuple[str, str]]) -> None:
        """Name and description of each tool."""
        self._postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths: list[int] = []
        for position, (name, description) in enumerate(tools):
            counts = Counter(words(description))
            for word in words(name):
                counts[word] += _NAME_WEIGHT
            for word, count in counts.items():
                self._postings[word].append((position, count))
            lengths.append(counts.total())
        average = sum(lengths) / len(lengths) if lengths else 1.0
        self._norms = [_K1 * (1 - _B + _B * length / (average or 1.0)) for length in lengths]

    def search(self, query: str) -> list[int]:
        """Positions of the tools that match at all, the best first; equally good ones in their own order."""
        scores: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(words(query)):
            best: dict[int, float] = {}
            for found, factor in self._similar(word):
                for position, score in self._scores(found):
                    best[position] = max(best.get(position, 0.0), factor * score)
            for position, score in best.items():
                scores[position] += score
        return sorted(scores, key=lambda position: (-scores[position], position))

    def _similar(self, word: str) -> Iterable[tuple[str, float]]:
        if word in self._postings:
            yield word, 1.0
        if len(word) >= _MIN_PREFIX:
            for known in self._postings:
                if known != word and known.startswith(word):
                    yield known, _PREFIX_FACTOR

    def _scores(self, word: str) -> Iterable[tuple[int, float]]:
        postings = self._postings[word]
        rarity = math.log(1 + (len(self._norms) - len(postings) + 0.5) / (len(postings) + 0.5))
        for position, count in postings:
            yield position, rarity * count * (_K1 + 1) / (count + self._norms[position])


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
