"""Answers that must match something, on the demo."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")

QUESTION = [{"role": "user", "content": "Tell me about Veloria."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK = {"model": "mlc_dsv3-demo", "messages": QUESTION, "max_tokens": 200}


def test_a_schema_is_kept_to_whole_and_streamed(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    whole = client.chat.completions.create(**ASK, response_format=wanted).choices[0]
    person = json.loads(whole.message.content)
    assert list(person) == ["name", "age"]
    assert whole.finish_reason == "stop"
    stream = client.chat.completions.create(**ASK, response_format=wanted, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.message.content


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"temperature": 1.2, "seed": 5}])
def test_every_kind_of_form_is_kept_to(client, setting):
    def answer(**form):
        choice = client.chat.completions.create(**ASK, **setting, extra_body=form).choices[0]
        return choice.message.content

    assert isinstance(json.loads(answer(guided_json=SCHEMA)), dict)
    assert re.fullmatch("[a-c]{3,5}", answer(guided_regex="[a-c]{3,5}"))
    assert answer(guided_choice=['"quoted"', "line\nend"]) in ('"quoted"', "line\nend")
    assert answer(guided_grammar='start: "x" "y"+ "z"').startswith("xy")


def test_any_object(client):
    wanted = {"type": "json_object"}
    answer = client.chat.completions.create(**{**ASK, "max_tokens": 500}, response_format=wanted).choices[0]
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.message.content), dict)


def test_completions_have_a_form_too(client):
    answer = client.completions.create(model="mlc_dsv3-demo", prompt="It is", extra_body={"guided_regex": "a{3}"})
    assert answer.choices[0].text == "aaa"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "JSON schema"),
        ({"guided_json": {"type": "object", "required": ["a"], "maxProperties": 0}}, "JSON schema"),
        ({"guided_regex": "(?=a)"}, "regular expression"),
        ({"guided_grammar": "start: nothing"}, "Lark grammar"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "both given"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_forms_that_cannot_be_kept_to_are_refused_with_the_reason(http, form, words, stream):
    answer = http.post("/v1/chat/completions", json={**ASK, **form, "stream": stream})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
