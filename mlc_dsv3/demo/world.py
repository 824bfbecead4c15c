"""The small world of the demo: people, things, places and the stories and questions about them.

Everything is drawn from a `random.Random`; chats.py makes training chats of it, questions.py the held-out questions.
"""

import dataclasses
import random
import zlib
from collections.abc import Callable

PLACES = (
    "kitchen",
    "garden",
    "park",
    "school",
    "library",
    "market",
    "tower",
    "forest",
    "museum",
    "bakery",
    "castle",
    "cave",
)
THINGS = ("ball", "book", "cup", "hat", "key", "lamp", "map", "pen", "ring", "drum", "kite", "box")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
COUNTED = ("coins", "apples", "nuts", "stones", "cards", "shells")


@dataclasses.dataclass(frozen=True)
class Person:
    """What is always true of somebody in the world."""

    age: int
    job: str
    pet: str


PEOPLE = {
    "Anna": Person(34, "baker", "cat"),
    "Ben": Person(12, "student", "dog"),
    "Clara": Person(58, "doctor", "bird"),
    "David": Person(41, "pilot", "fish"),
    "Emma": Person(9, "student", "horse"),
    "Felix": Person(27, "farmer", "goat"),
    "Greta": Person(73, "painter", "cat"),
    "Henry": Person(65, "baker", "dog"),
    "Iris": Person(19, "singer", "bird"),
    "Jonas": Person(46, "farmer", "horse"),
    "Kate": Person(31, "pilot", "fish"),
    "Leo": Person(7, "singer", "goat"),
    "Mia": Person(23, "painter", "dog"),
    "Noah": Person(52, "doctor", "cat"),
    "Olga": Person(80, "teacher", "fish"),
    "Paul": Person(38, "teacher", "horse"),
}
NAMES = tuple(PEOPLE)
JOBS = tuple(sorted({person.job for person in PEOPLE.values()}))
PETS = tuple(sorted({person.pet for person in PEOPLE.values()}))

MOVES = ("goes to", "walks to", "runs to")
HELD_OUT_SHARE = 10  # one combination in ten


@dataclasses.dataclass(frozen=True)
class Query:
    """A question, its answer as a sentence, and the one value in it that counts.

    `combination` is what has to come together for this answer; it decides whether training may see it.
    """

    kind: str
    question: str
    sentence: str
    answer: str
    combination: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination (a hash decides, so nobody has to keep a list)."""
        return zlib.crc32("|".join((self.kind, *self.combination)).encode()) % HELD_OUT_SHARE == 0


@dataclasses.dataclass(frozen=True)
class Story:
    """A text (which may be empty) and everything that can be asked after it."""

    text: str
    queries: tuple[Query, ...]


def moving_story(rng: random.Random) -> Story:
    """People move and hand things over; asks where people are, who has what, and where things are."""
    people = rng.sample(NAMES, rng.choice((2, 2, 3)))
    things = rng.sample(THINGS, rng.choice((1, 2)))
    colours = rng.sample(COLOURS, len(things))
    place: dict[str, str] = {}
    before: dict[str, str] = {}
    holder: dict[str, str] = {}
    giver: dict[str, str] = {}
    opening = []
    for person in people:
        place[person] = before[person] = rng.choice(PLACES)
        opening.append(f"{person} is in the {place[person]}.")
    for thing, colour in zip(things, colours, strict=True):
        holder[thing] = giver[thing] = rng.choice(people)
        opening.append(f"{holder[thing]} {rng.choice(('has', 'finds', 'takes'))} a {colour} {thing}.")
    first_holder = dict(holder)
    rng.shuffle(opening)
    lines = opening

    def move(person: str, target: str) -> None:
        before[person], place[person] = place[person], target
        lines.append(f"{person} {rng.choice(MOVES)} the {target}.")

    for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
        if rng.random() < 0.6:
            person = rng.choice(people)
            move(person, rng.choice([p for p in PLACES if p != place[person]]))
            continue
        thing = rng.choice(things)
        old = holder[thing]
        new = rng.choice([p for p in people if p != old])
        if place[old] != place[new]:
            move(old, place[new])
        giver[thing], holder[thing] = old, new
        lines.append(f"{old} gives the {thing} to {new}.")

    queries = [
        Query("place", f"Where is {p}?", f"{p} is in the {place[p]}.", place[p], (p, before[p], place[p]))
        for p in people
    ]
    for thing, colour in zip(things, colours, strict=True):
        who = holder[thing]
        where = place[who]
        queries += [
            Query("holder", f"Who has the {thing}?", f"{who} has the {thing}.", who, (giver[thing], thing, who)),
            Query(
                "thing_place", f"Where is the {thing}?", f"The {thing} is in the {where}.", where, (thing, who, where)
            ),
            Query(
                "colour",
                f"What colour is the {thing}?",
                f"The {thing} is {colour}.",
                colour,
                (first_holder[thing], colour, thing),
            ),
        ]
    return Story(" ".join(lines), tuple(queries))


def belongings_story(rng: random.Random) -> Story:
    """Several people own the same kinds of things in different colours; asks for the colour of one of them."""
    people = rng.sample(NAMES, rng.choice((2, 2, 3)))
    things = rng.sample(THINGS, 2)
    owned = [(p, t) for p in people for t in things]
    owned = rng.sample(owned, rng.randint(2, 4))
    colours = rng.sample(COLOURS, len(owned))
    lines = [f"{p} has a {c} {t}." for (p, t), c in zip(owned, colours, strict=True)]
    if rng.random() < 0.3:
        lines.insert(
            rng.randrange(len(lines) + 1), f"{rng.choice(people)} {rng.choice(MOVES)} the {rng.choice(PLACES)}."
        )
    queries = tuple(
        Query("colour", f"What colour is {p}'s {t}?", f"{p}'s {t} is {c}.", c, (p, c, t))
        for (p, t), c in zip(owned, colours, strict=True)
    )
    return Story(" ".join(lines), queries)


def counting_story(rng: random.Random) -> Story:
    """People have some of a thing and may pass some on; asks how many somebody has, and who has more."""
    people = rng.sample(NAMES, rng.choice((2, 2, 3)))
    item = rng.choice(COUNTED)
    has = dict(zip(people, rng.sample(range(1, 16), len(people)), strict=True))
    lines = [f"{p} has {_amount(n, item)}." for p, n in has.items()]
    combination = {p: (str(n), item, p) for p, n in has.items()}
    working = dict.fromkeys(people, "")
    queries = []
    giver, taker = rng.sample(people, 2)
    given = rng.randint(1, 9)
    if given < has[giver] and rng.random() < 0.75:
        lines.append(f"{giver} gives {_amount(given, item)} to {taker}.")
        combination[giver] = (str(has[giver]), "less", str(given))
        combination[taker] = (str(has[taker]), "plus", str(given))
        working[giver] = f"{has[giver]} - {given} = {has[giver] - given}. "
        working[taker] = f"{has[taker]} + {given} = {has[taker] + given}. "
        has[giver] -= given
        has[taker] += given
    else:
        first, second = rng.sample(people, 2)
        winner = max(first, second, key=has.__getitem__)
        small, large = sorted((has[first], has[second]))
        question = f"Who has more {item}, {first} or {second}?"
        queries.append(Query("more", question, f"{winner} has more {item}.", winner, (str(small), str(large), winner)))
    for person, count in has.items():
        question = f"How many {item} does {person} have?"
        sentence = f"{working[person]}{person} has {_amount(count, item)}."
        queries.append(Query("count", question, sentence, str(count), combination[person]))
    return Story(" ".join(lines), tuple(queries))


def _amount(count: int, item: str) -> str:
    return f"{count} {item if count != 1 else item.removesuffix('s')}"


def arithmetic(rng: random.Random) -> Story:
    """Four sums and differences of numbers below 100, each asked on its own."""
    queries = []
    for _ in range(4):
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        if rng.random() < 0.5:
            kind, sign, word, result = "sum", "+", "plus", a + b
        else:
            a, b = max(a, b), min(a, b)
            kind, sign, word, result = "difference", "-", "minus", a - b
        asked = rng.choice((f"What is {a} {sign} {b}?", f"What is {a} {word} {b}?", f"{a} {sign} {b} = ?"))
        queries.append(Query(kind, asked, _worked_out(a, sign, b), str(result), (str(a), str(b))))
    return Story("", tuple(queries))


def _worked_out(a: int, sign: str, b: int) -> str:
    """The answer as true equations: ones, tens, and the two together; a small model can't carry in its head."""
    result = a + b if sign == "+" else a - b
    if a < 10 and b < 10:
        return f"{a} {sign} {b} = {result}."
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    if sign == "-" and ones_a < ones_b:
        tens_a, ones_a = tens_a - 1, ones_a + 10
    ones, tens = (ones_a + ones_b, tens_a + tens_b) if sign == "+" else (ones_a - ones_b, tens_a - tens_b)
    first = f"{ones_a} {sign} {ones_b} = {ones}."
    second = f"{tens_a * 10} {sign} {tens_b * 10} = {tens * 10}."
    return f"{first} {second} {tens * 10} + {ones} = {result}."


def knowledge(rng: random.Random) -> Story:
    """Asks about what is always true: who of two people is older or younger, and who has a job or a pet."""
    queries = []
    for _ in range(3):
        first, second = rng.sample(NAMES, 2)
        one, two = PEOPLE[first], PEOPLE[second]
        pair = tuple(sorted((first, second)))
        older = first if one.age > two.age else second
        younger = second if older == first else first
        word, who = rng.choice((("older", older), ("younger", younger)))
        queries.append(Query("older", f"Who is {word}, {first} or {second}?", f"{who} is {word}.", who, pair))
        who = rng.choice(pair)
        other = pair[1] if who == pair[0] else pair[0]
        if rng.random() < 0.5 and one.job != two.job:
            job = PEOPLE[who].job
            queries.append(
                Query("fact", f"Who is a {job}, {first} or {second}?", f"{who} is a {job}.", who, (job, who, other))
            )
        elif one.pet != two.pet:
            pet = PEOPLE[who].pet
            queries.append(
                Query("fact", f"Who has a {pet}, {first} or {second}?", f"{who} has a {pet}.", who, (pet, who, other))
            )
    return Story("", tuple(queries))


STORIES: dict[str, tuple[Callable[[random.Random], Story], tuple[str, ...]]] = {
    "moving": (moving_story, ("place", "holder", "thing_place", "colour")),
    "belongings": (belongings_story, ("colour",)),
    "counting": (counting_story, ("count", "more")),
    "arithmetic": (arithmetic, ("sum", "difference")),
    "knowledge": (knowledge, ("older", "fact")),
}
KINDS = ("place", "holder", "thing_place", "colour", "count", "more", "sum", "difference", "older", "fact")
