"""Random requests made from the OpenAPI schema: none of them is answered by a failure of the server."""

from __future__ import annotations

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install '.[test]'")

SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def make_likelier(body: dict) -> None:
    """Leave a request its random settings, and take away what nearly always has it refused or makes it take long."""
    body.pop("model", None)
    body.pop("chat_template_kwargs", None)
    if len(str(body)) % 2 and "messages" in body:
        body["messages"] = [{"role": "user", "content": "What is 3 + 4?"}]
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 3)


@pytest.mark.full
def test_no_request_makes_the_server_fail(demo_server, demo_service):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is missing: pip install schemathesis")
    schema = schemathesis.openapi.from_url(f"{demo_server}/openapi.json")
    tried = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy())
        def answers(case):
            if isinstance(case.body, dict):
                make_likelier(case.body)
            response = case.call(timeout=60)
            expected = 501 if "embeddings" in case.path else 499
            assert response.status_code <= expected, (response.status_code, response.text, case.body)
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        answers()
        tried.append(operation.label)
    assert "POST /v1/chat/completions" in tried
    assert len(tried) > 12
    assert demo_service.llm.occupancy.running == 0
