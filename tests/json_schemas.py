"""JSON schemas as Hypothesis draws them, and what every model has to answer to them."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlc_dsv3 import LLM, Grammar, SamplingParams

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")
fastjsonschema = pytest.importorskip("fastjsonschema", reason="fastjsonschema is missing: pip install fastjsonschema")

QUESTION = [{"role": "user", "content": "Anna has a red ball. Who has a ball?"}]
LONGEST = 1500


def objects(values: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    """Schemas of objects; as in strict mode every property is required and no other allowed."""
    names = st.sampled_from(["name", "age", "colour", "Who has a ball?", "ü", 'a"b\\c', "x" * 30])
    return st.dictionaries(names, values, min_size=1, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        }
    )


LEAVES = st.one_of(
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 12)),
    st.just({"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}),
    st.just({"type": "string", "format": "date"}),
    st.builds(
        lambda least, span: {"type": "integer", "minimum": least, "maximum": least + span},
        st.integers(-1000, 1000),
        st.integers(0, 1000),
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"enum": ["red", "green", 3, None]}),
    st.just({"const": {"has": ["a", 1.5]}}),
)
SCHEMAS = objects(
    st.recursive(
        LEAVES,
        lambda values: st.one_of(
            objects(values),
            st.builds(
                lambda items, most: {"type": "array", "items": items, "maxItems": most}, values, st.integers(0, 3)
            ),
            st.builds(lambda one, other: {"anyOf": [one, other]}, values, values),
        ),
        max_leaves=4,
    )
)


def asked(schema: dict, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=1.0, top_p=1.0, seed=seed, max_tokens=LONGEST, grammar=Grammar.json_schema(schema)
    )


def answers_are_valid(models: list[LLM], examples: int) -> None:
    """Every model gives the same answers to schemas, several at a time, and they are valid."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(SCHEMAS, min_size=1, max_size=4), st.integers(0, 2**32))
    def holds(schemas: list[dict], seed: int) -> None:
        _check(models, schemas, seed)

    holds()


def _check(models: list[LLM], schemas: list[dict], seed: int) -> None:
    params = [asked(schema, seed + number) for number, schema in enumerate(schemas)]
    answers = [model.chat([QUESTION] * len(params), params) for model in models]
    for answer, schema in zip(answers[0], schemas, strict=True):
        assert answer.finish_reason == "stop", f"{schema} has no short answer"
        fastjsonschema.validate(schema, json.loads(answer.text))
    for others in answers[1:]:
        assert [each.token_ids for each in others] == [each.token_ids for each in answers[0]]
