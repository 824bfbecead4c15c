"""OpenAI's client for JavaScript, which agents are built on."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "mlc_dsv3-demo";
const messages = [{ role: "user", content: "What is the capital of Veloria?" }];
const whole = await client.chat.completions.create({ model, messages });
let streamed = "", usage = null;
const stream_options = { include_usage: true };
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, stream_options })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
const response = await client.responses.create({ model, input: messages[0].content });
const stream = client.responses.stream({ model, input: messages[0].content });
const final = await stream.finalResponse();
let refused = null;
try {
  await client.chat.completions.create({ model: "other", messages });
} catch (error) {
  refused = [error.status, error.code];
}
const answers = [whole.choices[0].message.content, streamed, response.output_text, final.output_text];
console.log(JSON.stringify({ answers, tokens: [whole.usage.completion_tokens, usage.completion_tokens], refused }));
"""


@pytest.mark.full
def test_the_javascript_client(demo_server, demo_llm, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: apt install npm")
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install openai: {installed.stderr[-200:]}")
    (tmp_path / "client.mjs").write_text(SCRIPT)
    done = subprocess.run(
        ["node", "client.mjs", f"{demo_server}/v1"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    expected = demo_llm.chat([{"role": "user", "content": "What is the capital of Veloria?"}])[0]
    assert said["answers"] == [expected.text] * 4
    assert said["tokens"] == [len(expected.token_ids)] * 2
    assert said["refused"] == [404, "model_not_found"]
