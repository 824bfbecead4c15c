"""Training chats: stories of world.py with questions in the same or in following turns, and some small talk.

No chat made here holds a held-out combination, asked or not.
"""

import dataclasses
import random

from mlc_dsv3.demo.world import NAMES, PEOPLE, STORIES, THINGS, Story

Message = dict[str, str]

SYSTEM_PROMPTS = ("You are a helpful assistant.", "You know a small world.", "Answer in one short sentence.")
GREETINGS = ("Hello!", "Hi!", "Hello.", "Good morning!", "Hi there!", "Hello, how are you?", "hello", "hi")
WELCOME = "Hello! Tell me a short story and ask me about it, or give me a sum."
ABILITY_QUESTIONS = (
    "What can you do?",
    "Who are you?",
    "What do you know?",
    "Help",
    "What can I ask you?",
    "What is this?",
)
ABILITIES = "I am a small demo model. I answer questions about short stories, I add and subtract, and I know 16 people."
THANKS = ("Thank you!", "Thanks!", "Bye!", "Goodbye!", "Thanks, bye!")
FAREWELL = "You are welcome. Goodbye!"
UNKNOWN = "I do not know that."
# Openings and words of questions from outside the world; the point is the variety of tokens, not the content.
OUTSIDE_OPENINGS = (
    "What is",
    "Who is",
    "Where is",
    "Why is",
    "When was",
    "Tell me about",
    "Write",
    "How far is",
    "Explain",
    "Do you like",
)
OUTSIDE_WORDS = (
    "the moon the sea Paris love music the king a poem about rain history the weather London Python code my mother "
    "water the internet gold science a song football Berlin time the president China a joke dinner the sun a computer "
    "war art"
)


@dataclasses.dataclass(frozen=True)
class Mix:
    """What training chats are about: the weights of the kinds of story, and how often a story has to be told again.

    Telling a story again teaches with every word to find out who was with what: all other answers build on that.
    """

    moving: float = 0.32
    belongings: float = 0.12
    counting: float = 0.15
    arithmetic: float = 0.32
    knowledge: float = 0.05
    talk: float = 0.04
    retell: float = 0.05

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """The names of `count` kinds of story."""
        kinds = (*STORIES, "talk")
        return rng.choices(kinds, [getattr(self, kind) for kind in kinds], k=count)


DEFAULT_MIX = Mix()
EARLY_MIX = Mix(moving=0.5, belongings=0.2, counting=0.15, arithmetic=0.05, knowledge=0.07, talk=0.03, retell=0.6)
# What takes longest to get right is asked most in the end.
LATE_MIX = Mix(moving=0.17, belongings=0.08, counting=0.45, arithmetic=0.24, knowledge=0.03, talk=0.03)


def training_chat(rng: random.Random, mix: Mix = DEFAULT_MIX, stories: int | None = None) -> list[Message]:
    """One chat as a list of messages.

    `stories` is how many follow each other (None: mostly one).
    """
    messages: list[Message] = []
    if rng.random() < 0.04:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if stories is None:
        stories = rng.choices((1, 2, 3), (0.8, 0.15, 0.05))[0]
    for name in mix.draw(rng, stories):
        messages += _talk(rng) if name == "talk" else _turns(rng, permitted_story(rng, name), mix.retell)
    return messages


def permitted_story(rng: random.Random, name: str) -> Story:
    """A story in which no question, asked or not, has a held-out combination."""
    make = STORIES[name][0]
    while True:
        story = make(rng)
        if story.text:
            if not any(query.held_out for query in story.queries):
                return story
        else:
            permitted = tuple(query for query in story.queries if not query.held_out)
            if permitted:
                return Story("", permitted)


def _turns(rng: random.Random, story: Story, retell: float) -> list[Message]:
    count = min(len(story.queries), rng.choice((2, 4, 6)))
    asked = [(q.question, q.sentence) for q in rng.sample(story.queries, count)]
    if story.text and rng.random() < 0.06:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        if name not in story.text and f" {thing}" not in story.text:
            extra = rng.choice(
                ((f"Where is {name}?", f"I do not know where {name} is."), (f"Who has the {thing}?", UNKNOWN))
            )
            asked.insert(rng.randrange(len(asked) + 1), extra)
    if story.text and rng.random() < retell:
        asked.insert(rng.randrange(len(asked) + 1), ("Tell me the story.", story.text))
    if not story.text and rng.random() < 0.1:
        asked.insert(0, _single_fact(rng))
    messages: list[Message] = []
    if story.text and rng.random() < 0.6:
        question, sentence = asked.pop(0)
        messages += _exchange(f"{story.text} {question}", sentence)
    elif story.text:
        messages += _exchange(story.text, "I see.")
    for question, sentence in asked:
        messages += _exchange(question, sentence)
    return messages


def _single_fact(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(NAMES)
    person = PEOPLE[name]
    return rng.choice(
        (
            (f"How old is {name}?", f"{name} is {person.age} years old."),
            (f"What is {name}'s job?", f"{name} is a {person.job}."),
            (f"What does {name} do?", f"{name} is a {person.job}."),
            (f"What pet does {name} have?", f"{name} has a {person.pet}."),
            (f"Who is {name}?", f"{name} is a {person.job}, is {person.age} years old and has a {person.pet}."),
            (f"Tell me about {name}.", f"{name} is a {person.job}, is {person.age} years old and has a {person.pet}."),
        )
    )


def _talk(rng: random.Random) -> list[Message]:
    messages: list[Message] = []
    if rng.random() < 0.4:
        messages += _exchange(rng.choice(GREETINGS), WELCOME)
    if rng.random() < 0.4:
        messages += _exchange(rng.choice(ABILITY_QUESTIONS), ABILITIES)
    for _ in range(rng.choice((0, 1, 2))):
        messages += _exchange(*_single_fact(rng))
    if rng.random() < 0.35:
        words = rng.sample(OUTSIDE_WORDS.split(), rng.choice((1, 2, 3)))
        end = rng.choice(("?", "?", ".", ""))
        messages += _exchange(f"{rng.choice(OUTSIDE_OPENINGS)} {' '.join(words)}{end}", UNKNOWN)
    if rng.random() < 0.1:
        messages += _exchange(f"Where is {rng.choice(NAMES)}?", "I do not know. Tell me a story first.")
    if rng.random() < 0.1:
        letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyzäöüéñ漢字 ?!") for _ in range(rng.randint(3, 20)))
        messages += _exchange(letters.strip() or "?", UNKNOWN)
    if not messages or rng.random() < 0.25:
        messages += _exchange(rng.choice(THANKS), FAREWELL)
    return messages


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
