"""The generator of the demo's world: deterministic, true to itself, and silent about held-out combinations."""

import itertools
import random
import re

import pytest

from mlc_dsv3.demo.chats import training_chat
from mlc_dsv3.demo.world import KINDS, PEOPLE, STORIES, Story, arithmetic, counting_story, knowledge, moving_story


def stories(make, count: int = 300, seed: int = 5) -> list[Story]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(count)]


def test_the_same_seed_makes_the_same_chats():
    chats = [[training_chat(rng) for _ in range(50)] for rng in (random.Random(3), random.Random(3))]
    assert chats[0] == chats[1]
    assert chats[0] != [training_chat(random.Random(4)) for _ in range(50)]


@pytest.mark.parametrize("name", STORIES)
def test_every_answer_is_in_its_sentence(name):
    make, kinds = STORIES[name]
    for story in stories(make):
        for query in story.queries:
            assert query.kind in kinds
            assert query.answer in re.findall(r"\w+", query.sentence)


def test_moving_stories_answer_with_the_last_place_of_a_person():
    for story in stories(moving_story):
        for query in story.queries:
            if query.kind == "place":
                person = query.combination[0]
                places = re.findall(rf"{person} (?:is in|goes to|walks to|runs to) the (\w+)\.", story.text)
                assert places[-1] == query.answer


def test_a_thing_is_where_its_holder_is():
    for story in stories(moving_story):
        place = {q.combination[0]: q.answer for q in story.queries if q.kind == "place"}
        holder = {q.combination[1]: q.answer for q in story.queries if q.kind == "holder"}
        for query in story.queries:
            if query.kind == "thing_place":
                assert query.answer == place[holder[query.combination[0]]]


def test_counting_stories_lose_nothing():
    for story in stories(counting_story):
        counts = [int(q.answer) for q in story.queries if q.kind == "count"]
        assert sum(counts) == sum(int(n) for n in re.findall(r"has (\d+)", story.text))
        assert min(counts) >= 1


def test_sums_and_differences_are_right():
    for query in itertools.chain.from_iterable(story.queries for story in stories(arithmetic)):
        a, b = map(int, query.combination)
        assert int(query.answer) == (a + b if query.kind == "sum" else a - b)


def test_knowledge_agrees_with_the_people():
    for query in itertools.chain.from_iterable(story.queries for story in stories(knowledge)):
        if query.kind == "older":
            first, second = query.combination
            order = max if "older" in query.question else min
            assert query.answer == order((first, second), key=lambda name: PEOPLE[name].age)
        else:
            trait, who, other = query.combination
            assert trait in (PEOPLE[who].job, PEOPLE[who].pet)
            assert trait not in (PEOPLE[other].job, PEOPLE[other].pet)


def test_about_one_combination_in_ten_of_each_kind_is_held_out():
    drawn = {}
    for make, _ in STORIES.values():
        for query in itertools.chain.from_iterable(story.queries for story in stories(make, 3000)):
            drawn.setdefault(query.kind, {})[query.combination] = query.held_out
    assert set(drawn) == set(KINDS)
    for kind, combinations in drawn.items():
        assert 0.04 < sum(combinations.values()) / len(combinations) < 0.2, kind
