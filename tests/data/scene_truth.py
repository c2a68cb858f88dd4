"""The truth about a scene, found again slowly: one thing at a time, from its words and its box alone."""

from __future__ import annotations

from dataclasses import dataclass

APART = 1 / 6
SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Thing:
    noun: str
    a_noun: str
    kinds: str
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def stands(side: str, one: Thing, other: Thing) -> bool:
    """Whether one thing stands on this side of the other: in line with it, and clearly apart."""
    axis, sign = SIDES[side]
    ahead = sign * (one.centre[axis] - other.centre[axis])
    aside = one.centre[1 - axis] - other.centre[1 - axis]
    return one is not other and ahead > APART and abs(aside) < APART


def answer(question: str, things: list[Thing]) -> str:
    """The one right answer to a question of any family; fails if there are several or none."""
    words = question.removesuffix("?")
    if words.startswith("is there "):
        return "yes" if words.removeprefix("is there ") in [thing.a_noun for thing in things] else "no"
    if words.startswith("how many "):
        kinds = words.removeprefix("how many ").removesuffix(" are there")
        return str(sum(thing.kinds == kinds for thing in things))
    if words.startswith("are there more "):
        more, less = words.removeprefix("are there more ").split(" than ")
        more, less = (sum(thing.kinds == kinds for thing in things) for kinds in (more, less))
        assert more != less
        return "yes" if more > less else "no"
    if words.endswith(" most thing"):
        axis, sign = SIDES[words.split()[3]]
        *_, second, first = sorted(things, key=lambda thing: sign * thing.centre[axis])
        assert sign * (first.centre[axis] - second.centre[axis]) > APART
        return first.noun
    side, named = words.removeprefix("what is ").replace(" of ", " ").split(" the ")
    (other,) = [thing for thing in things if thing.noun == named]
    (found,) = [thing for thing in things if stands(side, thing, other)]
    axis, sign = SIDES[side]
    assert sum(sign * (thing.centre[axis] - other.centre[axis]) > APART for thing in things) > 1
    return found.noun


def is_true(caption: str, things: list[Thing]) -> bool:
    """Whether a caption of two things is true."""
    for words, side in (
        (" to the left of ", "left"),
        (" to the right of ", "right"),
        (" above ", "above"),
        (" below ", "below"),
    ):
        if words in caption:
            one, other = caption.split(words)
            return any(stands(side, a, b) for a in things for b in things if (a.a_noun, b.a_noun) == (one, other))
    raise AssertionError(caption)
