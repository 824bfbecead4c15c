"""`/v1/models`, `/health`, `/metrics`, `/experts` and the page."""

from __future__ import annotations

import pytest

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is missing: pip install '.[serve]'")

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


def _metrics(http) -> dict[str, float]:
    families = parser.text_string_to_metric_families(http.get("/metrics").text)
    return {
        sample.name.removeprefix("mlc_dsv3_"): sample.value
        for family in families
        for sample in family.samples
        if not sample.labels or sample.labels.get("reason") == "stop"
    }


def test_the_model_is_listed_under_its_name(client, http, demo_llm):
    (model,) = client.models.list().data
    assert model.id == "mlc_dsv3-demo"
    assert model.max_model_len == demo_llm.context_window
    assert model.thinking_variables == list(demo_llm.tokenizer.thinking_variables)
    assert client.models.retrieve("mlc_dsv3-demo") == model
    assert http.get("/v1/models/other").status_code == 404


def test_health_and_page_need_nothing(http):
    assert http.get("/health").json() == {"status": "ok"}
    assert "text/html" in http.get("/").headers["content-type"]
    assert http.get("/page/main.js").status_code == 200
    assert http.get("/page/..%2f..%2fapp.py").status_code == 404


def test_metrics_count_what_is_served(client, http):
    before = _metrics(http)
    answer = client.chat.completions.create(model="mlc_dsv3-demo", messages=QUESTION)
    after = _metrics(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("answers_total") == 1
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("time_between_tokens_seconds_count") == answer.usage.completion_tokens - 1
    assert grown("generated_tokens_total") == answer.usage.completion_tokens - 1
    assert after["requests_running"] == after["requests_waiting"] == 0
    assert 0 < after["cache_free_tokens"] <= after["cache_tokens"]
    assert after["cache_prefix_tokens"] > 0


def test_the_experts_load_follows_what_is_served(client, http, demo_llm, demo_service, monkeypatch):
    monkeypatch.setattr(demo_service.expert_shares, "_due", 0.0)  # however lately another test has asked
    config = demo_llm.artifact.model_config
    client.chat.completions.create(model="mlc_dsv3-demo", messages=QUESTION, max_tokens=1)
    load = http.get("/experts").json()
    assert load["experts"] == config.router.n_routed_experts
    assert len(load["load"]) == len(load["layers"])
    assert all(abs(sum(shares) - 1) < 1e-3 for shares in load["load"])
    assert load["tokens"] == len(demo_llm.prompt_tokens(QUESTION)) + 1
