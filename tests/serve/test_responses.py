"""`/v1/responses` on the demo, by OpenAI's own client."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai", reason="openai is missing: pip install '.[test]'")

MODEL = "mlc_dsv3-demo"
QUESTION = "What is the capital of Veloria?"


def test_whole_and_streamed_responses_are_what_the_model_says(client, demo_llm):
    expected = demo_llm.chat([{"role": "user", "content": QUESTION}])[0]
    whole = client.responses.create(model=MODEL, input=QUESTION)
    assert whole.output_text == expected.text
    assert whole.status == "completed"
    assert whole.usage.input_tokens == expected.prompt_tokens
    assert whole.usage.output_tokens == len(expected.token_ids)
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == expected.text
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == expected.text
    assert [each.sequence_number for each in events] == list(range(len(events)))
    kinds = [each.type.removeprefix("response.") for each in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]


def test_a_response_is_gone_on_from(client, demo_llm):
    first = client.responses.create(model=MODEL, input=QUESTION, instructions="Be brief.")
    second = client.responses.create(model=MODEL, input="And of what?", previous_response_id=first.id)
    third = client.responses.create(model=MODEL, input="Why?", previous_response_id=second.id)
    spoken = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of what?"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "Why?"},
    ]
    assert third.output_text == demo_llm.chat(spoken)[0].text
    assert third.usage.input_tokens == len(demo_llm.prompt_tokens(spoken))
    assert client.responses.retrieve(second.id).output_text == second.output_text
    (item,) = client.responses.input_items.list(second.id).data
    assert item.content == "And of what?"
    client.responses.delete(second.id)
    for gone in (lambda: client.responses.retrieve(second.id), lambda: _go_on(client, third.id)):
        with pytest.raises(openai.NotFoundError, match=second.id):
            gone()


def _go_on(client, identity):
    return client.responses.create(model=MODEL, input="x", previous_response_id=identity)


def test_what_is_not_to_be_stored_is_not(client):
    response = client.responses.create(model=MODEL, input=QUESTION, store=False, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_the_store_forgets_the_oldest(monkeypatch):
    from mlc_dsv3.serve.errors import ApiError
    from mlc_dsv3.serve.response_store import ResponseStore, StoredResponse

    monkeypatch.setattr("mlc_dsv3.serve.response_store._MOST_BYTES", 250)
    store = ResponseStore()
    for number in range(3):
        previous = str(number - 1) if number else None
        store.put(StoredResponse({"id": str(number), "output": [{"n": number}]}, [{"q": number}], previous, 100))
    with pytest.raises(ApiError):
        store.history("2")
    assert store.get("1").previous == "0"
    store.put(StoredResponse({"id": "3", "output": []}, [], None, 100))
    store.get("1")  # used since, so that the other goes
    with pytest.raises(ApiError):
        store.get("2")


def test_items_of_agents_become_one_conversation():
    from mlc_dsv3.serve.responses_request import conversation

    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "tides", "arguments": "{}"},
        {"type": "function_call", "call_id": "c", "namespace": "mcp", "name": "moon", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "d", "name": "apply_patch", "input": 'say "x"'},
        {"type": "function_call_output", "call_id": "a", "output": "Rain."},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "High."}]},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "Done."},
    ]

    def call(identity, name, arguments="{}"):
        return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}

    assert conversation(items) == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                call("a", "weather"),
                call("b", "tides"),
                call("c", "mcp__moon"),
                call("d", "apply_patch", '{"input": "say \\"x\\""}'),
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "Rain."},
        {"role": "tool", "tool_call_id": "b", "content": "High."},
        {"role": "tool", "tool_call_id": "d", "content": "Done."},
    ]


def test_logprobs_are_those_of_the_text(client):
    ask = {"model": MODEL, "input": QUESTION, "temperature": 0, "top_logprobs": 2}
    (message,) = client.responses.create(**ask).output
    tokens = message.content[0].logprobs
    assert "".join(each.token for each in tokens) == message.content[0].text
    assert all(len(each.top_logprobs) == 2 for each in tokens)
    streamed = client.responses.create(**ask, stream=True)
    pieces = [each for event in streamed if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [each.token for each in pieces] == [each.token for each in tokens]


def test_a_form_is_kept_to(client):
    pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    wanted = {"format": {"type": "json_schema", "name": "number", "schema": {**schema, "additionalProperties": False}}}
    answer = client.responses.create(model=MODEL, input=QUESTION, text=wanted, max_output_tokens=60)
    assert list(json.loads(answer.output_text)) == ["n"]


def test_tools_of_openais_own_servers_are_not_told_to_the_model(http, demo_llm):
    """The demo's template reads no tools, and would refuse them."""
    tools = [{"type": "web_search", "external_web_access": True}, {"type": "image_generation"}]
    answer = http.post("/v1/responses", json={"input": QUESTION, "tools": tools}).json()
    assert answer["usage"]["input_tokens"] == len(demo_llm.prompt_tokens([{"role": "user", "content": QUESTION}]))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"input": []}, 400, "input"),
        ({"input": [{"type": "computer_call"}]}, 400, "computer_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input_image"),
        ({"input": [{"role": "user"}]}, 400, "content"),
        ({"tools": [{"name": "nameless type"}]}, 400, "tools"),
        ({"tools": [{"type": "function"}]}, 400, "tool 1"),
        ({"previous_response_id": "resp_none"}, 404, "resp_none"),
        ({"conversation": "c"}, 400, "conversation"),
        ({"background": True}, 400, "background"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
    ],
)
def test_mistakes_are_said(http, change, status, words):
    answer = http.post("/v1/responses", json={"input": QUESTION, **change})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_stream_that_fails_says_so(http, demo_llm, monkeypatch):
    from mlc_dsv3.errors import NotFiniteError

    model = demo_llm._engine._model
    sample = model.sample

    def fail_later(output, draws):
        return [NotFiniteError("not finite") if draw.position > 24 else sample(output, [draw])[0] for draw in draws]

    monkeypatch.setattr(model, "sample", fail_later)
    text = http.post("/v1/responses", json={"input": QUESTION, "stream": True}).text
    *_, last = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert last["type"] == "response.failed"
    assert "not finite" in last["response"]["error"]["message"]
