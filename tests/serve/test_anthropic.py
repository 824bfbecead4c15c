"""`/v1/messages` on the demo, by Anthropic's own client."""

from __future__ import annotations

import json

import pytest

anthropic = pytest.importorskip("anthropic", reason="anthropic is missing: pip install '.[test]'")

QUESTION = [{"role": "user", "content": "What is the capital of Veloria?"}]
ASK = {"model": "mlc_dsv3-demo", "max_tokens": 40, "messages": QUESTION}


@pytest.fixture(scope="module")
def claude(demo_server):
    with anthropic.Anthropic(base_url=demo_server, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_whole_and_streamed_answers_are_what_the_model_says(claude, demo_llm):
    expected = demo_llm.chat(QUESTION)[0]
    whole = claude.messages.create(**ASK)
    assert [block.text for block in whole.content] == [expected.text]
    assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
    usage = whole.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected.prompt_tokens
    assert usage.output_tokens == len(expected.token_ids)
    with claude.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == expected.text
        streamed = stream.get_final_message()
    assert streamed.content[0].text == expected.text
    assert streamed.stop_reason == "end_turn"
    assert streamed.usage.output_tokens == len(expected.token_ids)


def test_why_an_answer_ends(claude):
    def stopped(**settings):
        answer = claude.messages.create(**{**ASK, **settings})
        return answer.stop_reason, answer.stop_sequence

    assert stopped(max_tokens=1) == ("max_tokens", None)
    word = claude.messages.create(**ASK).content[0].text.split()[2]
    assert stopped(stop_sequences=["no such text", word]) == ("stop_sequence", word)


def test_blocks_and_system_prompts_are_read_as_one_conversation(http, claude, demo_llm):
    plain = [{"role": "system", "content": "Be brief.\n\nBe kind."}, *QUESTION]
    body = {
        "model": "mlc_dsv3-demo",
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1a2b;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}],
    }
    expected = len(demo_llm.prompt_tokens(plain))
    assert claude.messages.count_tokens(**body).input_tokens == expected
    answer = claude.messages.create(**body, max_tokens=1).usage
    assert answer.input_tokens + answer.cache_read_input_tokens == expected


def test_a_form_is_kept_to(claude):
    pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "schema": schema}}
    answer = claude.messages.create(**{**ASK, "max_tokens": 80}, extra_body={"output_config": form})
    assert list(json.loads(answer.content[0].text)) == ["n"]


def test_the_models_are_listed(claude):
    (model,) = claude.models.list().data
    assert (model.id, model.type) == ("mlc_dsv3-demo", "model")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "image"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "The"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context window"),
        ({"temperature": 1e9}, 400, "temperature"),
        ({"mcp_servers": []}, 400, "mcp_servers"),
        ({"model": "claude-opus"}, 404, "claude-opus"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "tools"),
    ],
)
def test_mistakes_are_said_in_anthropics_words(http, change, status, words):
    answer = http.post("/v1/messages", json={**ASK, **change})
    assert answer.status_code == status
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert words in error["error"]["message"]


def test_a_stream_that_fails_ends_with_an_error_event(http, demo_llm, monkeypatch):
    from mlc_dsv3.errors import NotFiniteError

    model = demo_llm._engine._model
    sample = model.sample

    def fail_later(output, draws):
        return [NotFiniteError("not finite") if draw.position > 24 else sample(output, [draw])[0] for draw in draws]

    monkeypatch.setattr(model, "sample", fail_later)
    text = http.post("/v1/messages", json={**ASK, "stream": True, "max_tokens": 50}).text
    *_, last = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
