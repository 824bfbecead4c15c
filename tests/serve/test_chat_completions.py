"""`/v1/chat/completions` on the demo, by OpenAI's own client."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai", reason="openai is missing: pip install '.[test]'")

QUESTION = [{"role": "user", "content": "What is the capital of Veloria?"}]


def test_whole_and_streamed_answers_are_what_the_model_says(client, demo_llm):
    expected = demo_llm.chat(QUESTION)[0]
    whole = client.chat.completions.create(model="mlc_dsv3-demo", messages=QUESTION)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    assert whole.usage.completion_tokens == len(expected.token_ids)
    chunks = list(
        client.chat.completions.create(
            model="mlc_dsv3-demo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 0
    assert chunks[-1].timings["decode_seconds"] > 0
    assert chunks[-1].timings["drafted"] >= chunks[-1].timings["accepted"] >= 0


def test_every_choice_is_what_its_own_seed_gives(client):
    def texts(answer):
        return [choice.message.content for choice in answer.choices]

    ask = {"model": "mlc_dsv3-demo", "messages": QUESTION, "temperature": 1.5, "max_tokens": 12}
    three = client.chat.completions.create(**ask, n=3, seed=7)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    singles = [client.chat.completions.create(**ask, seed=seed) for seed in (7, 8, 9)]
    assert texts(three) == [texts(single)[0] for single in singles]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, n=3, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts(three)


def test_logprobs_at_temperature_0_are_the_models(client):
    ask = {"model": "mlc_dsv3-demo", "messages": QUESTION, "temperature": 0, "max_tokens": 4}
    entries = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(entries) == 4
    assert all(entry.logprob < 0 and len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.token == entry.top_logprobs[0].token for entry in entries)
    streamed = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, stream=True)
    assert [entry for chunk in streamed for entry in chunk.choices[0].logprobs.content] == entries


def test_logprobs_are_of_the_tokens_that_the_text_shows(client, demo_llm):
    ask = {"model": "mlc_dsv3-demo", "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    choice = client.chat.completions.create(**ask).choices[0]
    assert choice.finish_reason == "stop"
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    names = [[other.token for other in entry.top_logprobs] for entry in choice.logprobs.content]
    assert all(len(set(each)) == 20 for each in names)  # bytes that are no text by themselves are not alike


def test_sampling_settings_reach_the_model(client, demo_llm):
    def answer(**settings):
        return client.chat.completions.create(model="mlc_dsv3-demo", messages=QUESTION, **settings).choices[0]

    plain = answer()
    assert answer(max_tokens=1).finish_reason == "length"
    assert answer(max_completion_tokens=1).message.content != plain.message.content
    word = plain.message.content.split()[2]
    stopped = answer(stop=[f" {word}"])
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == plain.message.content.partition(f" {word}")[0]
    likeliest, second = answer(logprobs=True, top_logprobs=2, max_tokens=1).logprobs.content[0].top_logprobs
    banned = {str(demo_llm.tokenizer.encode(likeliest.token)[0]): -100}
    assert answer(max_tokens=1, logit_bias=banned).message.content == second.token
    hot = {"temperature": 100.0, "max_tokens": 3, "seed": 1}
    assert answer(**hot).message.content != answer(max_tokens=3).message.content
    for setting in ({"top_k": 1}, {"min_p": 1.0}):
        assert answer(**hot, extra_body=setting).message.content == answer(max_tokens=3).message.content


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "JSON object"),
        ({"messages": 5}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "a"}]}, 400, "role"),
        ({"messages": QUESTION, "temperature": "1"}, 400, "temperature"),
        ({"messages": QUESTION, "temperature": True}, 400, "temperature"),
        ({"messages": QUESTION, "temperature": -1}, 400, "temperature"),
        ({"messages": QUESTION, "top_logprobs": 3, "logprobs": True, "n": 0}, 400, "n"),
        ({"messages": QUESTION, "max_tokens": 0}, 400, "max_tokens"),
        ({"messages": QUESTION, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"messages": QUESTION, "logit_bias": {"9999999": 1}}, 400, "logit_bias"),
        ({"messages": QUESTION, "stop": ["x"] * 65}, 400, "stop"),
        ({"messages": QUESTION, "logit_bias": {str(token): 1 for token in range(4097)}}, 400, "logit_bias"),
        ({"messages": QUESTION, "unheard_of": 1}, 400, "unheard_of"),
        ({"messages": QUESTION, "model": "gpt-4"}, 404, "gpt-4"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context window"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]}, 400, "image"),
        ({"messages": QUESTION, "chat_template_kwargs": {"nonsense": True}}, 400, "nonsense"),
    ],
)
def test_mistakes_are_said_in_openais_words(http, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    if words in ("temperature", "max_tokens", "messages", "logit_bias", "unheard_of"):
        assert answer.json()["error"]["param"] == words


def test_fields_that_say_nothing_about_the_answer_are_accepted(client):
    answer = client.chat.completions.create(
        model="mlc_dsv3-demo",
        messages=[{"role": "developer", "content": "Be brief."}, *QUESTION],
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        max_tokens=1,
    )
    assert answer.choices[0].finish_reason == "length"
