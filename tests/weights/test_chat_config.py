"""The contents of mlc-chat-config.json."""

import json

import pytest
from tiny_checkpoints import DEEPSEEK_V3, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime import prepare
from mlc_dsv3.weights import Checkpoint, chat_config, gen_config
from mlc_dsv3.weights.chat_config import read_chat_config
from relax_model.config import parse_config
from relax_model.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path, DEEPSEEK_V3)


def test_the_model_and_its_window_come_from_the_checkpoint(folder):
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert fields["model_type"] == "deepseek_v3" and fields["quantization"] == "q4f16_1"
    assert fields["vocab_size"] == 160 and fields["context_window_size"] == 512
    assert parse_config(fields["model_config"]) == parse_config(DEEPSEEK_V3)
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (0, 1, None)


def test_generation_config_wins_over_config_and_defaults(folder):
    values = {"temperature": 0.3, "top_p": 0.95, "eos_token_id": [1, 7], "do_sample": True, "pad_token_id": None}
    (folder / "generation_config.json").write_text(json.dumps(values))
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert fields["temperature"] == 0.3 and fields["top_p"] == 0.95 and fields["eos_token_id"] == [1, 7]
    assert fields["repetition_penalty"] == 1.0 and fields["bos_token_id"] == 0


def write_generation(folder, **values):
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_every_sampling_setting_of_generation_config_arrives(folder):
    said = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    write_generation(folder, **said)
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert {name: fields[name] for name in said} == said
    write_generation(folder, top_k=None)
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert (fields["temperature"], fields["top_k"], fields["min_p"]) == (1.0, 0, 0.0)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(7, [1, 5], [7, 1, 5]), ([1, 7], 1, [1, 7]), (None, [1, 5], [1, 5]), (1, 1, 1), (-1, None, None)],
)
def test_what_either_file_says_ends_an_answer(folder, generation, config, expected):
    write_generation(folder, eos_token_id=generation)
    (folder / "config.json").write_text(json.dumps({**DEEPSEEK_V3, "eos_token_id": config}))
    assert gen_config(Checkpoint.open(folder), "q4f16_1")["eos_token_id"] == expected


def test_settings_that_are_not_applied_are_said(folder, capsys):
    write_generation(folder, num_beams=4, typical_p=1.0, no_repeat_ngram_size=3, bad_words_ids=None)
    gen_config(Checkpoint.open(folder), "q4f16_1")
    assert "not supported and left out: num_beams (4), no_repeat_ngram_size (3)" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["temperature", "top_k", "min_p", "eos_token_id", "do_sample"])
def test_a_wrong_setting_is_refused_by_file_and_name(folder, field):
    write_generation(folder, **{field: {"a": 1}})
    with pytest.raises(UserError, match=rf"generation_config.json: {field} is "):
        gen_config(Checkpoint.open(folder), "q4f16_1")


def test_an_end_token_beyond_the_vocabulary_is_refused_by_its_file(folder):
    beyond = "eos_token_id has 160; the model's vocabulary has 160 tokens"
    write_generation(folder, eos_token_id=[1, 160])
    with pytest.raises(UserError, match=f"generation_config.json: {beyond}"):
        gen_config(Checkpoint.open(folder), "q4f16_1")
    write_generation(folder, eos_token_id=159, pad_token_id=160)
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    artifact = folder / "mlc-chat-config.json"
    artifact.write_text(json.dumps(fields))
    assert read_chat_config(artifact)["eos_token_id"] == [159, 1]
    artifact.write_text(json.dumps({**fields, "eos_token_id": 160}))
    with pytest.raises(UserError, match=f"mlc-chat-config.json: {beyond}"):
        read_chat_config(artifact)
    (folder / "config.json").write_text(json.dumps({**DEEPSEEK_V3, "eos_token_id": 160}))
    with pytest.raises(UserError, match=f"/config.json: {beyond}"):
        gen_config(Checkpoint.open(folder), "q4f16_1")


def test_whole_numbers_may_be_written_as_floats(folder):
    write_generation(folder, top_k=50.0, eos_token_id=7.0)
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert fields["top_k"] == 50 and type(fields["top_k"]) is int
    artifact = folder / "mlc-chat-config.json"
    artifact.write_text(json.dumps({**fields, "top_k": 50.0, "context_window_size": 100.0}))
    read = read_chat_config(artifact)
    assert [type(read[name]) for name in ("top_k", "context_window_size")] == [int, int]
    write_generation(folder, top_k="50")
    with pytest.raises(UserError, match='generation_config.json: top_k is "50"; it must be a whole number'):
        gen_config(Checkpoint.open(folder), "q4f16_1")
    write_generation(folder, top_k=50.5)
    with pytest.raises(UserError, match="generation_config.json: top_k is 50.5; it must be a whole number"):
        gen_config(Checkpoint.open(folder), "q4f16_1")


@pytest.mark.parametrize("said", [{}, {"temperature": 0.7}])
def test_who_does_not_sample_has_a_temperature_of_zero(folder, said):
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, **said}))
    assert gen_config(Checkpoint.open(folder), "q4f16_1")["temperature"] == 0


def test_an_artifact_with_another_chat_config_is_another_one_in_the_cache(folder, monkeypatch):
    before = prepare._converted(Checkpoint.open(folder), "q4f16_1", [])
    assert prepare._converted(Checkpoint.open(folder), "q4f16_1", []).path == before.path
    monkeypatch.setitem(chat_config._SAMPLING_DEFAULTS, "top_p", 0.5)
    after = prepare._converted(Checkpoint.open(folder), "q4f16_1", [])
    assert (before.chat_config["top_p"], after.chat_config["top_p"]) == (1.0, 0.5)


def test_tokenizer_files_and_the_template_that_one_holds_are_listed(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"decoder": {"type": "ByteLevel"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    fields = gen_config(Checkpoint.open(folder), "q4f16_1")
    assert fields["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert fields["conv_template"] == "tokenizer_config.json"
    assert fields["tokenizer_info"]["token_postproc_method"] == "byte_level"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert gen_config(Checkpoint.open(folder), "q4f16_1")["conv_template"] == "chat_template.jinja"


def test_a_window_over_the_models_is_refused(folder):
    assert gen_config(Checkpoint.open(folder), "q4f16_1", context_window_size=100)["context_window_size"] == 100
    with pytest.raises(UserError, match="context_window_size is 513; this model allows 1 to 512"):
        gen_config(Checkpoint.open(folder), "q4f16_1", context_window_size=513)


def test_without_mtp_the_artifacts_model_has_no_mtp_layer(folder):
    fields = gen_config(Checkpoint.open(folder, without_mtp=True), "q4f16_1")
    assert parse_config(fields["model_config"]).num_nextn_predict_layers == 0


def test_an_unknown_quantization_lists_the_known_ones(folder):
    with pytest.raises(ConfigError, match="q5f16_9.*q4f16_1"):
        gen_config(Checkpoint.open(folder), "q5f16_9")
