"""The held-out questions that measure the demo model, and how an answer is judged.

Each is about a combination of people, things, places or numbers that no training chat holds (world.Query.held_out).
"""

import collections
import dataclasses
import random
import re

from mlc_dsv3.demo.world import COLOURS, KINDS, NAMES, PLACES, STORIES, Query

Message = dict[str, str]

DEFAULT_SEED = 2024
_VALUES = {
    "place": PLACES,
    "thing_place": PLACES,
    "colour": COLOURS,
    "holder": NAMES,
    "more": NAMES,
    "older": NAMES,
    "fact": NAMES,
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A chat that ends with a question, and the one value that its answer must name."""

    kind: str
    messages: tuple[Message, ...]
    answer: str
    sentence: str


def held_out_questions(count: int = 2000, seed: int = DEFAULT_SEED) -> list[Question]:
    """`count` different questions, as many of each of world.KINDS, always the same for the same seed."""
    rng = random.Random(seed)
    questions: list[Question] = []
    seen: set[str] = set()
    while len(questions) < count:
        question = _draw(rng, KINDS[len(questions) % len(KINDS)])
        if str(question.messages) not in seen:
            seen.add(str(question.messages))
            questions.append(question)
    return questions


def _draw(rng: random.Random, kind: str) -> Question:
    makers = [make for make, kinds in STORIES.values() if kind in kinds]
    while True:
        story = rng.choice(makers)(rng)
        fitting = [query for query in story.queries if query.kind == kind and query.held_out]
        if fitting:
            break
    query = rng.choice(fitting)
    others = [other for other in story.queries if other != query]
    earlier = [rng.choice(others)] if others and rng.random() < 0.3 else []
    return Question(kind, tuple(_messages(rng, story.text, [*earlier, query])), query.answer, query.sentence)


def _messages(rng: random.Random, text: str, queries: list[Query]) -> list[Message]:
    """The story in the turn of the first question or in one of its own, then the questions; the last is left open."""
    messages: list[Message] = []
    prefix = ""
    if text and rng.random() < 0.6:
        prefix = f"{text} "
    elif text:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    for query in queries:
        messages += [
            {"role": "user", "content": prefix + query.question},
            {"role": "assistant", "content": query.sentence},
        ]
        prefix = ""
    return messages[:-1]


def is_right(question: Question, text: str) -> bool:
    """Whether `text` names the answer and no other value of its kind; of numbers, whether its last is the answer."""
    values = _VALUES.get(question.kind)
    if values is None:
        numbers = re.findall(r"\d+", text)
        return bool(numbers) and numbers[-1] == question.answer
    return set(re.findall(r"\w+", text)) & set(values) == {question.answer}


def commonest_answer_score(questions: list[Question]) -> dict[str, float]:
    """For each kind, the share of right answers of somebody who always gives that kind's commonest answer."""
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    return {kind: counter.most_common(1)[0][1] / counter.total() for kind, counter in answers.items()}
