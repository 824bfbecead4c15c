"""`/v1/completions`, and what turns text into tokens and back."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from served import serving

from mlc_dsv3.cli.serve import _output_format
from mlc_dsv3.errors import UserError

httpx = pytest.importorskip("httpx", reason="httpx is missing: pip install '.[test]'")

TEXT = "The capital of Veloria is"
MESSAGES = [{"role": "user", "content": "x"}]


def test_text_and_token_ids_are_continued_alike(client, demo_llm):
    tokens = demo_llm.tokenizer.encode(TEXT, add_special_tokens=True)
    ask = {"model": "mlc_dsv3-demo", "max_tokens": 8}
    expected = demo_llm.generate(TEXT)[0].text
    answers = [
        client.completions.create(prompt=prompt, **ask).choices for prompt in (TEXT, tokens, [TEXT, TEXT], [tokens])
    ]
    texts = [choice.text for choices in answers for choice in choices]
    assert len(texts) == 5
    assert set(texts) == {texts[0]}
    assert expected.startswith(texts[0])
    streamed = client.completions.create(prompt=TEXT, stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in streamed) == texts[0]


def test_several_prompts_have_several_choices_each(client):
    ask = {"model": "mlc_dsv3-demo", "temperature": 1.5, "seed": 3, "max_tokens": 6}
    both = client.completions.create(prompt=[TEXT, "Once"], n=2, **ask)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    for place, prompt in enumerate((TEXT, "Once")):
        alone = client.completions.create(prompt=prompt, n=2, **ask)
        assert [choice.text for choice in alone.choices] == [c.text for c in both.choices[2 * place : 2 * place + 2]]


@pytest.mark.parametrize("generated", [0, 3])
def test_an_echoed_prompt_has_its_logprobs(client, demo_llm, generated):
    tokens = demo_llm.tokenizer.encode(TEXT, add_special_tokens=True)
    logits = demo_llm.logits(tokens).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    answer = client.completions.create(
        model="mlc_dsv3-demo", prompt=TEXT, echo=True, logprobs=2, max_tokens=generated, temperature=0
    )
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert choice.text.startswith(TEXT)
    assert (choice.text == TEXT) == (generated == 0)
    assert len(logprobs.tokens) == len(tokens) + generated
    assert logprobs.token_logprobs[0] is None
    own = [expected[place, token] for place, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(logprobs.token_logprobs[1 : len(tokens)], own, atol=2e-2)
    best = [row.max() for row in expected[: len(tokens) - 1]]
    np.testing.assert_allclose([max(top.values()) for top in logprobs.top_logprobs[1 : len(tokens)]], best, atol=2e-2)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert answer.usage.completion_tokens == generated


def test_texts_become_tokens_and_tokens_texts(http, demo_llm):
    tokens = http.post("/tokenize", json={"prompt": TEXT}).json()
    assert tokens["tokens"] == demo_llm.tokenizer.encode(TEXT, add_special_tokens=True)
    assert tokens["count"] == len(tokens["tokens"])
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": TEXT}
    conversation = {"messages": [{"role": "user", "content": "Hi <|assistant|>"}]}
    assert http.post("/tokenize", json=conversation).json()["tokens"] == demo_llm.prompt_tokens(
        conversation["messages"]
    )
    text = http.post("/apply-template", json=conversation).json()["prompt"]
    assert text.endswith("<|user|>Hi <|assistant|><|assistant|>")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/completions", {"prompt": ""}, 400, "empty"),
        ("/v1/completions", {"prompt": []}, 400, "empty"),
        ("/v1/completions", {"prompt": [[1], []]}, 400, "empty"),
        ("/v1/completions", {"prompt": [10**9]}, 400, "token id"),
        ("/v1/completions", {"prompt": ["a", 1]}, 400, "prompt"),
        ("/v1/completions", {"prompt": 5}, 400, "prompt: Input should be a valid string"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "echo"),
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("/tokenize", {}, 400, ""),
        ("/detokenize", {"tokens": [-1]}, 400, "token id"),
        ("/apply-template", {"messages": [{"role": "nobody", "content": ""}]}, 400, "unknown role"),
        ("/v1/embeddings", {"input": "a"}, 501, "embeddings"),
    ],
)
def test_mistakes_are_said(http, path, body, status, words):
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_completion_tokens": 0}, "max_completion_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ("/v1/responses", {"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ("/tokenize", {"messages": []}, "messages"),
    ],
)
def test_mistakes_name_the_field_that_the_client_sent(http, path, body, param):
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(param)


TOOLS = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TOOLS, "the chat template does not read tools"),
        ({"chat_template_kwargs": {"x": 1}}, "the chat template has no variable x"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "the chat template refuses the conversation"),
    ],
)
def test_clients_do_not_see_the_servers_paths(http, demo_llm, options, words):
    answer = http.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}], **options})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert str(demo_llm.tokenizer.folder) not in answer.text


def test_a_base_model_completes_and_does_not_chat(demo_llm, monkeypatch, capsys):
    from mlc_dsv3.serve.service import Service

    def without(self):
        raise UserError("there is no chat template")

    monkeypatch.setattr(type(demo_llm.tokenizer), "chat_template", property(without))
    parsed = argparse.Namespace(reasoning_parser=None, tool_parser=None)
    answers = _output_format(parsed, demo_llm.tokenizer)
    assert "no chat template" in capsys.readouterr().err
    service = Service(demo_llm, ["base"], demo_llm.default_params, output_format=answers, max_waiting=1)
    with serving(service) as origin:
        completed = httpx.post(f"{origin}/v1/completions", json={"prompt": TEXT, "max_tokens": 2})
        assert completed.status_code == 200
        refused = httpx.post(f"{origin}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        assert refused.status_code == 400
        assert "no chat template" in refused.json()["error"]["message"]
        assert httpx.get(f"{origin}/v1/models").json()["data"][0]["thinking_variables"] == []
