"""The sentences of arithmetic-words: who has how much of what, what happens to it, and what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

Operation = tuple[int, str, int]  # x, one of + - * /, y

_HER = ("Mia", "Ana", "Eva", "Lea", "Ida", "Zoe", "Ruth", "Nora", "Sara", "Emma", "Lily", "Rosa", "Jane", "Kate", "Tina", "Vera")
_HIM = ("Ben", "Tom", "Max", "Leo", "Sam", "Ian", "Paul", "Omar", "Carl", "Hugo", "Jack", "Noah", "Adam", "Finn", "Ravi", "Luis")
_THINGS = (
    *(
        "apples",
        "pears",
        "plums",
        "lemons",
        "eggs",
        "nuts",
        "beans",
        "cards",
        "coins",
        "books",
        "pens",
        "stamps",
        "shells",
        "stones",
    ),
    *("stones", "balls", "kites", "toys", "cups", "plates", "boxes of tea", "candles", "ribbons", "buttons", "beads", "marbles"),
    *("stickers", "roses", "tulips", "seeds", "leaves"),
)

# {A}, {B}: two people; {he}, {him}: A; {x}, {y}: the operation's numbers
_SUMS = (
    "{A} has {x} {things}. {he} buys {y} more. How many {things} does {A} have now?",
    "{A} has {x} {things} and {B} has {y} {things}. How many {things} do they have together?",
    "There are {x} {things} in a box. {A} puts in {y} more. How many {things} are in the box now?",
    "{A} found {x} {things} on Monday and {y} on Tuesday. How many {things} did {A} find in all?",
    "{A} has {x} {things}. {B} has {y} more than {A}. How many {things} does {B} have?",
    "{A} had {x} {things}. Then {B} gave {him} {y} {things}. How many {things} does {A} have now?",
    "{A} gave away {x} {things} and has {y} left. How many {things} did {A} have before?",
)
_DIFFERENCES = (
    "{A} has {x} {things}. {he} gives {y} to {B}. How many {things} does {A} have left?",
    "{A} has {x} {things} and {B} has {y}. How many more {things} does {A} have than {B}?",
    "There are {x} {things} in a box. {A} takes out {y}. How many {things} are left in the box?",
    "{A} had {x} {things} and lost {y} of them. How many {things} does {A} still have?",
    "{A} has {x} {things}. {B} has {y} fewer than {A}. How many {things} does {B} have?",
    "{A} needs {x} {things} and has {y}. How many {things} does {A} still need?",
    "{A} and {B} have {x} {things} together. {B} owns {y} of them. How many {things} does {A} have?",
)
_GAINS = (
    "{he} buys {y} more {things}.",
    "{B} gives {him} {y} {things}.",
    "{he} finds {y} more {things}.",
    "Then {he} gets {y} {things} from a friend.",
    "The next day {he} collects {y} {things}.",
)
_LOSSES = (
    "{he} gives {y} {things} to {B}.",
    "{he} loses {y} {things}.",
    "{he} sells {y} {things}.",
    "Then {he} throws away {y} old {things}.",
    "The next day {he} uses {y} {things}.",
)
_DISTRACTORS = (
    "{B} has {d} {others}.",
    "{A} also has {d} {others}.",
    "It is {d} minutes past noon.",
    "{B} lives {d} kilometers away.",
    "Last year {A} read {d} papers.",
)


@dataclass
class Story:
    """sentences: the question, piece by piece; operations: what it asks for, in their order."""

    sentences: list[str]
    operations: list[Operation]


class _Cast:
    """The people and things of one story; `say` fills a sentence's slots. pronouns: he and she, where only A can be meant."""

    def __init__(self, random: Random, *, pronouns: bool = True) -> None:
        self.random, self.pronouns = random, pronouns
        self.a, self.b = random.sample(_HER + _HIM, 2)
        self.things, self.others = random.sample(_THINGS, 2)

    def say(self, sentence: str, **numbers: int) -> str:
        he, him = ("she", "her") if self.a in _HER else ("he", "him")
        he, him = (he, him) if self.pronouns else (self.a, self.a)
        text = sentence.format(A=self.a, B=self.b, he=he, him=him, things=self.things, others=self.others, **numbers)
        parts = text.split(". ")  # a sentence begins with a capital
        return ". ".join(part[:1].upper() + part[1:] for part in parts)

    def choose(self, sentences: tuple[str, ...], **numbers: int) -> str:
        return self.say(self.random.choice(sentences), **numbers)


def one_step(random: Random) -> Story:
    """Level 1: x + y or x - y, numbers from 2 to 99, all pairs equally likely."""
    cast = _Cast(random)
    while True:
        x, y = random.randint(2, 97), random.randint(2, 97)
        if x + y < 100:
            break
    if random.random() < 0.5:
        return Story([cast.choose(_SUMS, x=x, y=y)], [(x, "+", y)])
    return Story([cast.choose(_DIFFERENCES, x=x + y, y=y)], [(x + y, "-", y)])


def two_or_three_steps(random: Random) -> Story:
    """Level 2: a story of gains and losses, or two people compared and counted together."""
    cast = _Cast(random)
    x = random.randint(10, 99)
    if random.random() < 0.25:
        return _compared(cast, x)
    story = Story([cast.say("{A} has {x} {things}.", x=x)], [])
    for _ in range(random.randint(2, 3)):
        x = _change(cast, story, x, most=199)
    story.sentences.append(cast.say("How many {things} does {A} have now?"))
    return story


def _compared(cast: _Cast, x: int) -> Story:
    more = cast.random.random() < 0.5
    y = cast.random.randint(2, min(x - 2, 99 - x // 2))
    other: Operation = (x, "+" if more else "-", y)
    z = x + y if more else x - y
    told = cast.say("{A} has {x} {things}. {B} has {y} " + ("more" if more else "fewer") + " than {A}.", x=x, y=y)
    return Story([told, cast.say("How many {things} do they have together?")], [other, (x, "+", z)])


def _change(cast: _Cast, story: Story, x: int, *, most: int) -> int:
    """Something is added or taken away; returns what there is now."""
    gain = x < 12 or (x <= most - 2 and cast.random.random() < 0.5)
    y = cast.random.randint(2, min(99, most - x)) if gain else cast.random.randint(2, min(99, x - 2))
    story.sentences.append(cast.choose(_GAINS if gain else _LOSSES, y=y))
    story.operations.append((x, "+" if gain else "-", y))
    return x + y if gain else x - y


def many_steps(random: Random) -> Story:
    """Level 3: bags of things or a large number; changes, distractors, and a last multiplication, division or none."""
    cast = _Cast(random, pronouns=False)
    bags = random.random() < 0.5
    if bags:
        n, k = random.randint(11, 99), random.randint(2, 9)
        story = Story([cast.say("{A} has {k} bags with {n} {things} each.", k=k, n=n)], [(n, "*", k)])
        x = n * k
    else:
        x = random.randint(100, 999)
        story = Story([cast.say("{A} has {x} {things}.", x=x)], [])
    for _ in range(random.randint(1 if bags else 2, 2)):
        x = _change(cast, story, x, most=999)
    for distractor in random.sample(_DISTRACTORS, random.randint(0, 2)):
        place = random.randint(1, len(story.sentences))
        story.sentences.insert(place, cast.say(distractor, d=random.randint(2, 59)))
    divisors = [k for k in range(2, 10) if x % k == 0]
    ending = random.randrange(3)
    if ending == 0 and divisors:
        k = random.choice(divisors)
        story.sentences.append(
            cast.say("{he} shares all {things} equally among {k} friends. How many {things} does each get?", k=k)
        )
        story.operations.append((x, "/", k))
    elif ending == 1:
        k = random.randint(2, 9)
        story.sentences.append(cast.say("{he} sells all {things} for {k} dollars each. How many dollars does {he} get?", k=k))
        story.operations.append((x, "*", k))
    else:
        story.sentences.append(cast.say("How many {things} does {A} have now?"))
    return story
