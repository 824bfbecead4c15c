"""The held-out questions: fixed, of every kind, unseen in training, and judged by the one value that counts."""

import collections
import random

from mlc_dsv3.demo import chats
from mlc_dsv3.demo.questions import Question, commonest_answer_score, held_out_questions, is_right
from mlc_dsv3.demo.world import KINDS, STORIES


def question(kind: str, answer: str) -> Question:
    return Question(kind, ({"role": "user", "content": "?"},), answer, f"{answer}.")


def test_the_questions_of_a_seed_are_fixed_different_and_of_every_kind():
    questions = held_out_questions(400)
    assert questions == held_out_questions(400)
    assert questions != held_out_questions(400, seed=1)
    assert len({str(q.messages) for q in questions}) == 400
    assert collections.Counter(q.kind for q in questions) == dict.fromkeys(KINDS, 40)
    assert all(q.messages[-1]["role"] == "user" for q in questions)


def test_their_own_sentences_are_right():
    assert all(is_right(q, q.sentence) for q in held_out_questions(400))


def test_training_never_asks_them():
    """Neither their words nor, whatever the words, their combinations: no permitted story holds one."""
    asked = {
        q.messages[-1]["content"] for q in held_out_questions(2000) if q.kind in ("sum", "difference", "older", "fact")
    }
    rng = random.Random(11)
    for _ in range(5000):
        assert asked.isdisjoint(message["content"] for message in chats.training_chat(rng))
    for name in STORIES:
        for _ in range(500):
            assert not any(query.held_out for query in chats.permitted_story(rng, name).queries)


def test_held_out_combinations_are_what_the_questions_ask():
    rng = random.Random(12)
    for kind in KINDS:
        make = next(make for make, kinds in STORIES.values() if kind in kinds)
        assert any(q.kind == kind and q.held_out for _ in range(2000) for q in make(rng).queries)


def test_an_answer_counts_if_it_names_the_value_and_no_other():
    place = question("place", "park")
    assert is_right(place, "Anna is in the park.")
    assert not is_right(place, "Anna is in the garden.")
    assert not is_right(place, "Anna is in the park or in the garden.")
    assert not is_right(place, "")
    name = question("older", "Anna")
    assert is_right(name, "Anna is older.")
    assert not is_right(name, "Anna is older than Ben.")


def test_of_numbers_the_last_counts():
    number = question("sum", "91")
    assert is_right(number, "34 + 57 = 91.")
    assert not is_right(number, "91 + 1 = 92.")
    assert not is_right(number, "34 + 57 = 191.")
    assert not is_right(number, "ninety")


def test_the_commonest_answer_scores_its_share():
    questions = [question("place", a) for a in ("park", "park", "cave", "park")] + [
        question("more", a) for a in ("Anna", "Ben")
    ]
    assert commonest_answer_score(questions) == {"place": 0.75, "more": 0.5}
