"""`mlc_dsv3 chat`: what it hands to the model and the session, and what it refuses before anything is made."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlc_dsv3.cli.main import main
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.engine_stats import EngineStats
from mlc_dsv3.runtime.template import ChatTemplate


class FakeLLM:
    """Stands for `LLM` in the chat verb: keeps how it was made, and answers with the words it was given."""

    made: dict[str, object]
    template_error: UserError | None = None
    answer = "An answer."
    context_window = 100
    eos_token_ids = frozenset({1})

    def __init__(self, model: object, *, check_tokenizer: Callable, **options: object) -> None:
        from mlc_dsv3.runtime.sampling import SamplingParams

        check_tokenizer(self.tokenizer)
        FakeLLM.made = {"model": model, **options}
        self.artifact = SimpleNamespace(quantization="q4f16_1")
        self.device = "cpu"
        self.default_params = SamplingParams(temperature=0.6, top_p=0.9)
        self.stats = EngineStats()

    @property
    def tokenizer(self) -> SimpleNamespace:
        def chat_prompt(prompt: object, **_: object) -> None:
            if self.template_error is not None:
                raise self.template_error

        template = ChatTemplate("{{ messages }}{{ thinking }}", Path("folder/chat_template.jinja"))
        return SimpleNamespace(
            chat_template=template,
            chat_prompt=chat_prompt,
            thinking_variables=("thinking",),
            eos_token_ids=self.eos_token_ids,
            folder=Path("folder"),
            vocab_size=256,
            hidden_tokens={},
            token_bytes=lambda token: bytes([token]),
            encode=lambda text: list(text.encode()),
        )

    def answer_opening(self, prompt: object, **options: object) -> str:
        return ""

    def stream(self, prompt: object, params: object, **options: object):
        FakeLLM.made |= {"prompt": prompt, "params": params, **options}
        yield SimpleNamespace(text=self.answer, token_ids=(1, 2), finish_reason="stop", prompt_tokens=3)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    monkeypatch.setattr("mlc_dsv3.runtime.llm.LLM", FakeLLM)
    return FakeLLM


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_chat_answers_one_prompt(llm: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quantization", "q8f16_1", "--device", "cpu", "--model-lib", "a.so", "--ignore-config-field", "x"]
    options += ["--cache-dtype", "int8"]
    assert main(["chat", "folder", "--prompt", " Hello? ", "--system", "Be brief.", *options]) == 0
    assert capsys.readouterr().out == "An answer.\n"
    assert llm.made["model"] == "folder"
    assert llm.made["quantization"] == "q8f16_1"
    assert llm.made["device"] == "cpu"
    assert llm.made["model_lib"] == Path("a.so")
    assert llm.made["cache_dtype"] == "int8"
    assert llm.made["ignore_config_fields"] == ["x"]
    assert llm.made["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
    ]


def test_chat_options_go_over_the_models_defaults(llm: type[FakeLLM]) -> None:
    options = ["--temperature", "0", "--top-k", "5", "--max-tokens", "7", "--seed", "1", "--stop", "a", "--stop", "b"]
    assert main(["chat", "--prompt", "x", *options, "--ignore-eos"]) == 0
    params = llm.made["params"]
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0, 5, 7, 1)
    assert (params.stop, params.ignore_eos, params.top_p) == (("a", "b"), True, 0.9)


def test_chat_reads_the_prompt_from_a_pipe_and_answers_in_json(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, "two\nlines\n")
    assert main(["chat", "--prompt", "-", "--raw", "--json"]) == 0
    assert llm.made["prompt"] == "two\nlines\n"
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["model"], answer["quantization"], answer["device"]) == (
        "An answer.",
        "demo",
        "q4f16_1",
        "cpu",
    )


def test_chat_takes_bytes_that_are_no_text(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb"), encoding="utf-8"))
    assert main(["chat", "--prompt", "-", "--raw"]) == 0
    assert llm.made["prompt"] == "a\ufffdb"


def test_chat_answers_a_terminal_of_another_encoding(llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(llm, "answer", "Größe.")
    assert main(["chat", "--prompt", "x"]) == 0
    assert written.getvalue() == b"Gr??e.\n"


def test_chat_answers_lines_in_json_lines(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, "one\ntwo\n")
    assert main(["chat", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["An answer."] * 2
    assert len(llm.made["prompt"]) == 3


@pytest.mark.parametrize("options", [[], ["--json"], ["--raw"]])
def test_chat_goes_on_after_a_refused_line_of_a_pipe_and_ends_with_an_error(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    def stream(self: FakeLLM, prompt: object, params: object, **_: object):
        if "second" in str(prompt if isinstance(prompt, str) else prompt[-1]):
            raise UserError("it is too long")
        return stream_all(self, prompt, params)

    stream_all = llm.stream
    monkeypatch.setattr(llm, "stream", stream)
    stdin(monkeypatch, "first\nsecond\nthird\n")
    assert main(["chat", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("An answer.") == 2
    assert "it is too long" in (shown.out if options == ["--json"] else shown.err)
    assert shown.err.splitlines()[-1] == "mlc_dsv3: error: 1 of 3 messages was not answered"


def test_chat_holds_a_session_and_introduces_the_demo(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlc_dsv3.demo import HINT

    stdin(monkeypatch, "hello\n")
    assert main(["chat"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "An answer.\n"
    assert shown.err.splitlines() == ["demo · q4f16_1 · cpu  (/help lists the commands)", HINT]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--prompt", "  "], "--prompt is empty"),
        (["--prompt", "-"], "standard input has no prompt"),
        (["--raw", "--system", "x"], "--raw uses no chat template; leave out --system"),
        (["--raw", "--template-kwargs", '{"thinking": true}'], "leave out --template-kwargs"),
        (["--template-kwargs", "{thinking: true}"], "--template-kwargs: '{thinking: true}' is not valid JSON"),
        (["--template-kwargs", "[1]"], "'[1]' is not a JSON object, such as {\"thinking\": true}"),
        (["--on-overflow", "forget"], "--on-overflow: invalid choice: 'forget'"),
    ],
)
def test_chat_refuses_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str], arguments: list[str], said: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr("mlc_dsv3.runtime.llm.LLM", never)
    stdin(monkeypatch, "\n")
    assert said in complaint("chat", *arguments)


def test_chat_misses_a_template_before_the_first_message(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str]
) -> None:
    monkeypatch.setattr(llm, "template_error", UserError("tiny has no chat template"))
    assert "no chat template" in complaint("chat", "tiny", "--prompt", "x")
    assert main(["chat", "tiny", "--prompt", "x", "--raw"]) == 0


def test_chat_hands_on_what_the_template_is_to_be_told(llm: type[FakeLLM], complaint: Callable[..., str]) -> None:
    options = ["--template-kwargs", '{"thinking": true}', "--parse-control-tokens"]
    assert main(["chat", "--prompt", "x", *options]) == 0
    assert (llm.made["template_kwargs"], llm.made["parse_control_tokens"]) == ({"thinking": True}, True)
    assert main(["chat", "--prompt", "x"]) == 0
    assert (llm.made["template_kwargs"], llm.made["parse_control_tokens"]) == ({}, False)


def test_chat_refuses_a_variable_that_the_template_does_not_have(
    llm: type[FakeLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--template-kwargs", '{"thinknig": true, "thinking": true}']) == 2
    assert "the chat template in folder/chat_template.jinja has no variable thinknig" in capsys.readouterr().err


def without(checkpoint: Path, folder: Path, *names: str) -> Path:
    """A checkpoint without some of its files."""
    return Path(shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*names)))


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (lambda source, to: without(source, to, "tokenizer*"), (), "has no tokenizer"),
        (lambda source, to: without(source, to, "tokenizer*"), ("--raw",), "has no tokenizer"),
        (lambda source, to: with_template(source, to, None), (), "has no chat template"),
        (lambda source, to: with_template(source, to, "{% if %}"), (), "not valid Jinja"),
        (lambda source, to: with_template(source, to, REFUSING), ("--system", "Be brief."), "no system prompts here"),
        (lambda source, to: with_template(source, to, REFUSING), ("--template-kwargs", '{"x": 1}'), "no variable x"),
    ],
)
@pytest.mark.parametrize("made", ["checkpoint", "artifact"])
def test_chat_misses_what_a_conversation_needs_before_it_converts_or_compiles(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    complaint: Callable[..., str],
    tmp_path: Path,
    made: str,
    make: Callable[[Path, Path], Path],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made something")

    for name in ("convert", "pack_artifact", "cached_library"):
        monkeypatch.setattr(f"mlc_dsv3.runtime.prepare.{name}", never)
    folder = make(request.getfixturevalue(made), tmp_path / "copy")
    capsys.readouterr()  # what made the fixture says its name
    assert said in complaint("chat", folder, "--prompt", "x", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rebalance", "{folder}", "--text", "{text}"], "has no tokenizer"),
        (["bench", "{folder}", "--experts", "{text}"], "has no tokenizer"),
        (["bench", "{folder}", "--speculative", "1", "--prompts", "{text}"], "has no tokenizer"),
    ],
)
def test_a_text_needs_a_tokenizer_before_anything_is_converted_or_compiled(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: Callable[..., str],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made something")

    for name in ("convert", "pack_artifact", "cached_library"):
        monkeypatch.setattr(f"mlc_dsv3.runtime.prepare.{name}", never)
    (tmp_path / "text.txt").write_text("Some words.")
    folder = without(checkpoint, tmp_path / "copy", "tokenizer*")
    assert said in complaint(*(argument.format(folder=folder, text=tmp_path / "text.txt") for argument in arguments))


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompts here') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def with_template(checkpoint: Path, folder: Path, template: str | None) -> Path:
    """A checkpoint with another chat template, or with none."""
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


def test_a_chat_without_an_end_token_is_warned_of(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "folder", "--prompt", "Hello"]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(llm, "eos_token_ids", frozenset())
    assert main(["chat", "folder", "--prompt", "Hello", "--raw"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["chat", "folder", "--prompt", "Hello"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("mlc_dsv3: warning: no file in folder says which token ends an answer (eos_token_id in")
    assert said.count("\n") == 1


ANNA_OR_BEN = '{"enum": ["Anna", "Ben"]}'


@pytest.mark.parametrize("way", ["text", "file", "regex", "lark"])
def test_chat_hands_on_what_answers_must_match(llm: type[FakeLLM], tmp_path: Path, way: str) -> None:
    from mlc_dsv3.runtime.grammar import Grammar

    lark = 'start: "Anna" | "Ben"'
    (tmp_path / "schema.json").write_text(ANNA_OR_BEN)
    (tmp_path / "names.lark").write_text(lark)
    options, expected = {
        "text": (["--json-schema", ANNA_OR_BEN], Grammar.json_schema(ANNA_OR_BEN)),
        "file": (["--json-schema", str(tmp_path / "schema.json")], Grammar.json_schema(ANNA_OR_BEN)),
        "regex": (["--regex", "Anna|Ben"], Grammar.regex("Anna|Ben")),
        "lark": (["--grammar", str(tmp_path / "names.lark")], Grammar.lark(lark)),
    }[way]
    assert main(["chat", "--prompt", "x", *options]) == 0
    assert llm.made["params"].grammar == expected


@pytest.mark.parametrize(
    ("opening", "reasoning"),
    [("<think>\n", "begun"), ("<think>\n\n</think>\n\n", "none"), ("</think>", "none"), ("", "none")],
)
def test_the_thought_that_a_template_opens_is_left_free(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, opening: str, reasoning: str
) -> None:
    monkeypatch.setattr(llm, "answer_opening", lambda *_, **__: opening)
    assert main(["chat", "--prompt", "x", "--regex", "a+"]) == 0
    assert llm.made["params"].grammar.reasoning == reasoning


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json-schema", "{"], "the JSON schema is not valid JSON: "),
        (["--json-schema", "nowhere.json"], "--json-schema is nowhere.json, and there is no such file"),
        (["--json-schema", "[]"], "--json-schema is [], and there is no such file"),
        (["--json-schema", '{"type": "strin"}'], "the JSON schema cannot be used: Invalid type: strin"),
        (
            ["--json-schema", '{"type": "string", "minLength": 2, "maxLength": 1}'],
            "Unsatisfiable schema: minLength (2)",
        ),
        (["--regex", "("], 'the regular expression cannot be used: at 1(8): invalid regex "("'),
        (["--regex", ""], "the argument after --regex is empty"),
        (["--grammar", "nowhere"], "--grammar is nowhere, and there is no such file"),
        (["--grammar", "FILE"], "the Lark grammar cannot be used: "),
        (["--regex", "a", "--json-schema", "{}"], "--json-schema and --regex do not go together"),
    ],
)
def test_what_no_answer_can_match_is_said_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: Callable[..., str],
    options: list[str],
    words: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made something")

    for name in ("convert", "pack_artifact", "cached_library"):
        monkeypatch.setattr(f"mlc_dsv3.runtime.prepare.{name}", never)
    (tmp_path / "hello.lark").write_text("hello")
    options = [str(tmp_path / "hello.lark") if option == "FILE" else option for option in options]
    for more in ([], ["--raw", "--json"]):
        assert words in complaint("chat", "--prompt", "x", *more, *options)
