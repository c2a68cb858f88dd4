"""What is asked and said about scenes: five families of questions, and captions of two drawings.

All of it is read off the scene graph (`Scenes.relations`, `Scenes.extremes`), so each answer is certain. A family picks
at random among everything it could ask of a scene.

Legend: S scenes, C concepts, K kinds, O places for drawings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from multimodal.data.scenes import MAX_DRAWINGS, Cast, Scenes, choose, draw, pick

FAMILIES = ("exist", "count", "query", "compare", "relation")

# In the order of DIRECTIONS.
_MOST = np.array(["left most", "right most", "top most", "bottom most"], dtype=object)
_STANDS = np.array(["left of", "right of", "above", "below"], dtype=object)
_SAID = np.array(["to the left of", "to the right of", "above", "below"], dtype=object)

_NUMBER = np.array([str(number) for number in range(MAX_DRAWINGS + 1)], dtype=object)
_ALIKE = 0.5  # share of absent things that are asked for because another of their kind is there
_ABSENT_KIND = 0.15  # share of "how many" questions whose answer is 0


@dataclass(frozen=True)
class Words:
    """How things are called."""

    noun: np.ndarray  # str[C]  "cow"
    a_noun: np.ndarray  # str[C]  "a cow"
    kinds: np.ndarray  # str[K]  "animals"


@dataclass(frozen=True)
class Asked:
    """n questions on scenes, in columns."""

    scene: np.ndarray  # int[n]
    family: np.ndarray  # str[n]
    text: np.ndarray  # str[n]
    answer: np.ndarray  # str[n]
    guess: np.ndarray  # str[n]  some drawing of the scene that the question does not name; "" if none is asked for


class Writer:
    """Writes the questions and captions of S scenes.

    Args:
        keys: uint64[S], the keys that the scenes were drawn with.
        pair_shift: questions and captions that are about two drawings are about a held-out pair.
    """

    def __init__(self, *, scenes: Scenes, keys: np.ndarray, cast: Cast, words: Words, pair_shift: bool) -> None:
        self.scenes, self.keys, self.cast, self.words = scenes, keys, cast, words
        self.every = np.arange(len(keys))
        self.kind = np.where(scenes.present, cast.kind[scenes.concept], -1)  # int[S, O]
        self.counts = (self.kind[:, :, None] == np.arange(len(words.kinds))).sum(axis=1)  # int[S, K]
        self.relations = scenes.relations()  # bool[S, 4, O, O]
        self.about = np.ones_like(self.relations)  # bool[S, 4, O, O]  whom relations and captions may be about
        if pair_shift:
            held_out = cast.held_out
            self.about &= held_out[scenes.concept[:, :, None], scenes.concept[:, None, :]][:, None]

    def questions(self, rounds: int) -> Asked:
        """Up to `rounds` (1 or 2) different questions of each family on each scene, those on one scene together.

        Yes is the answer on scenes 0, 2, 4... in the first round and on scenes 1, 3, 5... in the second: of an even
        number of scenes, exactly half.
        """
        families = (self.exist, self.count, self.query, self.compare, self.relation)
        parts = [part for family in families for part in family(rounds)]
        whole = {
            column.name: np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Asked)
        }
        order = np.argsort(whole["scene"], kind="stable")
        return Asked(**{name: column[order] for name, column in whole.items()})

    def exist(self, rounds: int) -> list[Asked]:
        """Ask "is there a cow?" Where the answer is no, in half of the cases something else of its kind is there.

        Only half: were it always so, knowing kinds would not help at all, and nothing would lead a model from there on
        to telling things of one kind apart.
        """
        there = np.zeros((len(self.every), len(self.cast.kind)), dtype=bool)
        scene, place = np.nonzero(self.scenes.present)
        there[scene, self.scenes.concept[scene, place]] = True
        parts = []
        for turn in range(rounds):
            yes = self._yes(turn)
            present_kind = self.kind[self.every, pick(self.scenes.present, self._chance("exist kind", turn))]
            any_kind = choose(len(self.words.kinds), self._chance("exist any kind", turn))
            kind = np.where(self._chance("exist alike", turn) < _ALIKE, present_kind, any_kind)
            absent = (self.cast.kind == kind[:, None]) & ~there
            concept = pick(np.where(yes[:, None], there, absent), self._chance("exist", turn))
            text = "is there " + self.words.a_noun + "?"
            parts.append(self._asked("exist", text[concept], _yes_no(yes)))
        return parts

    def count(self, rounds: int) -> list[Asked]:
        """Ask "how many animals are there?", of the kind of some drawing or of an absent kind: "0" to "5"."""
        fresh = np.ones(self.counts.shape, dtype=bool)
        parts = []
        for turn in range(rounds):
            absent = pick((self.counts == 0) & fresh, self._chance("count absent", turn))
            place = pick(self.scenes.present & fresh[self.every[:, None], self.kind], self._chance("count", turn))
            zero = self._chance("count zero", turn) < _ABSENT_KIND
            kind = np.where(zero, absent, np.where(place >= 0, self.kind[self.every, place], -1))
            fresh[self.every, kind] = False
            text = "how many " + self.words.kinds + " are there?"
            parts.append(self._asked("count", text[kind], _NUMBER[self.counts[self.every, kind]], kind >= 0))
        return parts

    def query(self, rounds: int) -> list[Asked]:
        """Ask "what is the top most thing?" where one is."""
        extremes = self.scenes.extremes()
        fresh = extremes >= 0
        parts = []
        for turn in range(rounds):
            side = pick(fresh, self._chance("query", turn))
            fresh[self.every, side] = False
            guess = pick(self.scenes.present, self._chance("query guess", turn))
            text = "what is the " + _MOST + " thing?"
            answer = extremes[self.every, side]
            parts.append(self._asked("query", text[side], self._noun(answer), side >= 0, self._noun(guess)))
        return parts

    def compare(self, rounds: int) -> list[Asked]:
        """Ask "are there more animals than vehicles?", of kinds that are both there if their numbers can differ."""
        more = self.counts[:, :, None] > self.counts[:, None, :]
        both = more & (self.counts[:, None, :] > 0)
        pairs = np.where(both.any(axis=(1, 2), keepdims=True), both, more).reshape(len(self.every), -1)
        text = "are there more " + self.words.kinds[:, None] + " than " + self.words.kinds + "?"
        parts = []
        for turn in range(rounds):
            yes = self._yes(turn)
            many, few = np.divmod(pick(pairs, self._chance("compare", turn)), len(self.words.kinds))
            parts.append(self._asked("compare", np.where(yes, text[many, few], text[few, many]), _yes_no(yes)))
        return parts

    def relation(self, rounds: int) -> list[Asked]:
        """Ask "what is left of the cow?" where exactly one thing is.

        Another thing lies to the left as well, out of line: who doesn't look for the cow can't tell the two.
        """
        alone = self.relations & (self.relations.sum(axis=2, keepdims=True) == 1) & self.about
        fresh = (alone.any(axis=2) & (self.scenes.sides().sum(axis=2) > 1)).reshape(len(self.every), -1)
        text = "what is " + _STANDS[:, None] + " the " + self.words.noun + "?"
        parts = []
        for turn in range(rounds):
            chosen = pick(fresh, self._chance("relation", turn))
            fresh[self.every, chosen] = False
            direction, named = np.divmod(chosen, MAX_DRAWINGS)
            answer = alone[self.every, direction, :, named].argmax(axis=1)
            others = self.scenes.present & (np.arange(MAX_DRAWINGS) != named[:, None])
            guess = self._noun(pick(others, self._chance("relation guess", turn)))
            asked = text[direction, self.scenes.concept[self.every, named]]
            parts.append(self._asked("relation", asked, self._noun(answer), chosen >= 0, guess))
        return parts

    def captions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Drawing `a int[S]` stands in `direction int[S]` of drawing `b int[S]`: what to say of each scene."""
        pairs = (self.relations & self.about).reshape(len(self.every), -1)
        direction, a, b = np.unravel_index(pick(pairs, self._chance("caption", 0)), self.relations.shape[1:])
        return a, direction, b

    def _chance(self, name: str, turn: int) -> np.ndarray:
        return draw(self.keys, f"{name} {turn}")

    def _yes(self, turn: int) -> np.ndarray:
        return (self.every + turn) % 2 == 0

    def _noun(self, place: np.ndarray) -> np.ndarray:
        return self.words.noun[self.scenes.concept[self.every, place]]

    def _asked(
        self,
        family: str,
        text: np.ndarray,
        answer: np.ndarray,
        possible: np.ndarray | None = None,
        guess: np.ndarray | None = None,
    ) -> Asked:
        keep = self.every if possible is None else np.flatnonzero(possible)
        nothing = np.full(len(self.every), "", dtype=object)
        guess = nothing if guess is None else guess
        return Asked(keep, np.full(len(keep), family, dtype=object), text[keep], answer[keep], guess[keep])


def caption_texts(words: Words, a: np.ndarray, direction: np.ndarray, b: np.ndarray) -> list[str]:
    """Say "a cow to the left of a goose", of the concepts `a int[n]` and `b int[n]`."""
    columns = zip(words.a_noun[a], _SAID[direction], words.a_noun[b], strict=True)
    return [f"{subject} {stands} {other}" for subject, stands, other in columns]


def _yes_no(yes: np.ndarray) -> np.ndarray:
    return np.where(yes, "yes", "no").astype(object)
