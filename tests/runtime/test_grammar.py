"""Grammars on the fake model: every answer matches, drafted or not, alone or beside others."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from fake_model import FakeMetadata, FakeModel, make_engine, run, text_of, tokens_of

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.detokenizer import Detokenizer
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
from mlc_dsv3.runtime.grammar_matcher import GrammarMatcher, allowed_tokens
from mlc_dsv3.runtime.sampler import sample
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import Fixed

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")

WORDS = ["name", "age", '": ', '{"', '", "', '"}', "yes", "no", "aa", "ab", "123", "\n  ", "<think>"]
VOCABULARY = [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS] + [b"", b""]
EOS, TOOL = len(VOCABULARY) - 2, len(VOCABULARY) - 1
MODEL_SIZE = len(VOCABULARY) + 29  # wider than the tokenizer's
PROMPT = [3, 141, 59, 26, 53]


class WordTokenizer:
    """Every byte, a few words and two hidden tokens; longest words first."""

    strips_leading_space = False
    eos_token_ids = frozenset({EOS})
    hidden_tokens = {EOS: "<end>", TOOL: "<tool>"}  # noqa: RUF012

    def token_bytes(self, token: int) -> bytes:
        return VOCABULARY[token] if token < len(VOCABULARY) else b""

    def encode(self, text: str) -> list[int]:
        words = sorted((piece for piece in VOCABULARY if piece), key=len, reverse=True)
        found = re.findall(b"|".join(map(re.escape, words)), text.encode(), re.DOTALL)
        return [VOCABULARY.index(word) for word in found]


COMPILER = GrammarCompiler(WordTokenizer(), MODEL_SIZE)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "friend": {"enum": ["yes", "no", None]},
    },
    "required": ["name", "age", "friend"],
    "additionalProperties": False,
}
GRAMMARS = {
    "regex": Grammar.regex(r"(yes|no)(, [a-z]{1,5})*\."),
    "forced": Grammar.regex(r"the name is: (Anna|Annabel), and the age is: [0-9]{1,3}!"),
    "schema": Grammar.json_schema(PERSON),
    "lark": Grammar.lark('start: "(" item ("," item)* ")"\nitem: /[0-9]{1,3}/ | start'),
    "end anywhere": Grammar.regex("[ab]*"),
}
KINDS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 11},
    "flat": {"temperature": 3.0, "min_p": 0.001, "seed": 12},
    "penalties": {"temperature": 0.7, "seed": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    "bias": {"seed": 6, "logit_bias": {ord("z"): 1000.0, 260: 5.0}},
    "logprobs": {"temperature": 0.5, "seed": 3, "logprobs": 2},
}


def engine_with(drafts: int | None, model: FakeModel | None = None, **options) -> Engine:
    return make_engine(
        model or FakeModel(vocab_size=MODEL_SIZE),
        detokenizer=lambda: Detokenizer(WordTokenizer()),
        eos_token_ids={EOS},
        speculation=Fixed(drafts) if drafts else None,
        grammars=COMPILER,
        **options,
    )


def answers(engine: Engine, wanted: Sequence[SamplingParams], prompts: Sequence[list[int]] | None = None) -> list:
    """Each request's tokens, text, reason and logprobs."""
    prompts = prompts or [PROMPT] * len(wanted)
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, wanted, strict=True)]
    updates = run(engine)
    return [
        (
            tokens_of(updates[request]),
            text_of(updates[request]),
            updates[request][-1].finish_reason,
            [each for update in updates[request] for each in update.logprobs or []],
        )
        for request in requests
    ]


def matches(name: str, text: str) -> bool:
    if name == "schema":
        value = json.loads(text)
        return (
            list(value) == ["name", "age", "friend"]
            and len(value["name"]) <= 6
            and 0 <= value["age"] <= 130
            and value["friend"] in ("yes", "no", None)
        )
    if name == "lark":
        return re.fullmatch(r"\([\d,()]+\)", text) is not None and text.count("(") == text.count(")")
    return re.fullmatch(GRAMMARS[name].text, text) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAMMARS)
def test_every_answer_matches_and_is_the_same_with_drafts(name: str, kind: str) -> None:
    params = SamplingParams(**KINDS[kind], grammar=GRAMMARS[name], max_tokens=80)
    prompts = [PROMPT, PROMPT[:1], [9] * 14]
    plain = answers(engine_with(None), [params] * 3, prompts)
    for _, text, reason, _ in plain:
        assert reason == "length" or matches(name, text)
    assert name == "end anywhere" or any(reason == "stop" for _, _, reason, _ in plain)
    for drafts in (1, 3):
        assert answers(engine_with(drafts), [params] * 3, prompts) == plain


def test_neighbours_keep_their_tokens_and_answers_do_not_depend_on_neighbours() -> None:
    free = [SamplingParams(seed=seed, max_tokens=30, ignore_eos=True) for seed in range(3)]
    bound = [
        SamplingParams(seed=seed, max_tokens=60, grammar=grammar) for seed, grammar in enumerate(GRAMMARS.values())
    ]
    alone = [answers(engine_with(2), [params])[0] for params in [*free, *bound]]
    for drafts in (None, 2):
        assert answers(engine_with(drafts), [*free, *bound]) == alone


def test_a_preempted_answer_goes_on_where_it_was() -> None:
    wanted = [SamplingParams(seed=seed, max_tokens=70, grammar=GRAMMARS["schema"]) for seed in range(6)]
    alone = [answers(engine_with(None), [params])[0] for params in wanted]
    for drafts in (None, 2):
        engine = engine_with(drafts, num_pages=26)
        assert answers(engine, wanted) == alone
        assert engine.stats.preemptions > 0


def test_what_is_forced_takes_no_steps_of_its_own() -> None:
    sentence = "the name is: Anna, and the age is: 123!"
    params = SamplingParams(grammar=Grammar.regex(re.escape(sentence)), seed=1)
    for drafts in (None, 2):
        model = FakeModel(FakeMetadata(max_rows=64, exact_rows=64), vocab_size=MODEL_SIZE)
        engine = engine_with(drafts, model)
        ((tokens, text, reason, _),) = answers(engine, [params])
        assert (text, reason) == (sentence, "stop")
        assert tokens == WordTokenizer().encode(sentence), "the tokens that the text has by itself"
        assert len(model.steps) == 2, "the prompt and the first token; all others"
        assert engine.stats.forced == len(tokens) - 2
        assert sum(engine.stats.drafted) == 0


def test_rows_for_what_is_forced_are_bounded() -> None:
    sentence = "x" * 90
    params = SamplingParams(grammar=Grammar.regex(sentence), seed=1)
    model = FakeModel(FakeMetadata(max_rows=16, exact_rows=4), vocab_size=MODEL_SIZE)
    got = answers(engine_with(None, model), [params, params])
    assert [text for _, text, _, _ in got] == [sentence, sentence[:90]]
    assert max(len(batch.tokens) for batch in model.steps[2:]) == 4


def test_the_layer_drafts_what_the_grammar_allows() -> None:
    engine = engine_with(1)
    answers(engine, [SamplingParams(temperature=0, grammar=Grammar.regex("[ab]{40}"))])
    assert engine.stats.accepted[0] > 0.5 * engine.stats.drafted[0] > 5


@pytest.mark.parametrize("text", ["the name is Anna", "a <tool> that is spelled out"])
def test_what_is_forced_is_that_text_whatever_the_tokenizer_makes_of_it(text: str) -> None:
    class Prefixing(WordTokenizer):
        """Puts a space in front, and finds hidden tokens in text."""

        def encode(self, text: str) -> list[int]:
            before, tool, behind = text.partition("<tool>")
            parts = [*super().encode(" " + before), *([TOOL] if tool else []), *super().encode(behind)]
            return parts

    compiler = GrammarCompiler(Prefixing(), MODEL_SIZE)
    engine = make_engine(
        FakeModel(vocab_size=MODEL_SIZE), detokenizer=lambda: Detokenizer(Prefixing()), grammars=compiler
    )
    ((_, found, reason, _),) = answers(engine, [SamplingParams(grammar=Grammar.regex(re.escape(text)))])
    assert (found, reason) == (text, "stop")
    assert engine.stats.forced > 5


def test_an_answer_ends_where_the_grammar_can_only_end() -> None:
    (tokens, text, reason, _), *_ = answers(engine_with(None), [SamplingParams(grammar=Grammar.regex("aaaa"))])
    assert (text, reason) == ("aaaa", "stop") and EOS not in tokens


def test_an_end_of_text_token_ends_an_answer_only_where_the_grammar_allows_it() -> None:
    wants_to_end = {"temperature": 0, "logit_bias": {EOS: 1000.0}, "max_tokens": 30}
    ((tokens, text, reason, _),) = answers(
        engine_with(None), [SamplingParams(grammar=Grammar.regex("c{3}[cd]*"), **wants_to_end)]
    )
    assert (text, reason, tokens[-1]) == ("ccc", "stop", EOS)


def test_ignore_eos_goes_on_for_as_long_as_the_grammar_allows() -> None:
    wants_to_end = {"temperature": 0, "logit_bias": {EOS: 1000.0}, "max_tokens": 30, "ignore_eos": True}
    open_end, closed = Grammar.regex("[ab]*"), Grammar.regex("[ab]{0,50}")
    (tokens, _, reason, _), (_, text, closed_reason, _) = answers(
        engine_with(2),
        [
            SamplingParams(grammar=open_end, **wants_to_end),
            SamplingParams(grammar=closed, **{**wants_to_end, "max_tokens": 60}),
        ],
    )
    assert (len(tokens), reason) == (30, "length") and EOS not in tokens
    assert (len(text), closed_reason) == (50, "stop")


def test_stop_strings_and_max_tokens_cut_an_answer() -> None:
    grammar = Grammar.regex("one two three")
    (_, text, reason, _), (tokens, _, length, _) = answers(
        engine_with(2), [SamplingParams(grammar=grammar, stop="two"), SamplingParams(grammar=grammar, max_tokens=4)]
    )
    assert (text, reason) == ("one ", "stop")
    assert (len(tokens), length) == (4, "length")


def test_a_bias_frees_nothing_that_the_grammar_forbids() -> None:
    bias = {token: 1e30 for token in range(MODEL_SIZE) if token not in (ord("q"), EOS)}
    params = SamplingParams(temperature=0, grammar=Grammar.regex("q{5}"), logit_bias=bias)
    assert answers(engine_with(None), [params])[0][1] == "qqqqq"


def test_hidden_tokens_are_named_and_what_the_model_has_beyond_its_tokenizer_never_comes() -> None:
    params = [
        SamplingParams(grammar=Grammar.lark('start: <tool> "go" <tool>'), seed=1),
        *(SamplingParams(grammar=Grammar.regex("(.|\n){40}"), temperature=50.0, seed=seed) for seed in range(8)),
    ]
    (tokens, text, reason, _), *others = answers(engine_with(2), params)
    assert (tokens[0], tokens[-1], text, reason) == (TOOL, TOOL, "go", "stop")
    assert all(max(tokens) < TOOL for tokens, *_ in others)


def test_json_has_little_white_space_or_what_the_schema_says() -> None:
    likes_spaces = {"temperature": 0, "logit_bias": {ord(" "): 100.0, ord("\n"): 50.0}, "max_tokens": 200}
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    (_, spaced, _, _), (_, tight, _, _) = answers(
        engine_with(None),
        [SamplingParams(grammar=Grammar.json_schema(each), **likes_spaces) for each in (schema, compact)],
    )
    assert spaced == '{ "a": 1 }'
    assert tight == '{"a":1}'


def test_a_model_without_an_end_of_text_token() -> None:
    class Endless(WordTokenizer):
        eos_token_ids = frozenset()

    compiler = GrammarCompiler(Endless(), MODEL_SIZE)
    engine = make_engine(
        FakeModel(vocab_size=MODEL_SIZE), detokenizer=lambda: Detokenizer(Endless()), grammars=compiler
    )
    (_, text, reason, _), (tokens, *_) = answers(
        engine,
        [SamplingParams(grammar=Grammar.regex("no|yes")), SamplingParams(grammar=Grammar.regex("a+"), max_tokens=9)],
    )
    assert text in ("no", "yes") and reason == "stop"
    assert len(tokens) == 9


def test_a_model_whose_vocabulary_is_smaller_than_its_tokenizers() -> None:
    size = 258  # bytes, and two words
    compiler = GrammarCompiler(WordTokenizer(), size)
    engine = make_engine(
        FakeModel(vocab_size=size), detokenizer=lambda: Detokenizer(WordTokenizer()), grammars=compiler
    )
    ((tokens, text, reason, _),) = answers(engine, [SamplingParams(grammar=Grammar.regex("name, yes or no"))])
    assert (text, reason) == ("name, yes or no", "stop") and max(tokens) < size


def test_a_matcher_says_the_same_however_it_came_there() -> None:
    """Masks behind drafts, after rejected ones too, are those of a matcher that went there token by token."""
    rng = np.random.default_rng(1)
    for grammar in GRAMMARS.values():
        matcher = COMPILER.matcher(grammar)
        taken: list[int] = []
        for _ in range(12):
            assert matcher.masks()[0].tolist() == fresh(grammar, taken).masks()[0].tolist()
            for _ in range(3):
                path = walk(grammar, taken, rng, length=4)
                masks = matcher.masks(path)
                for length, mask in enumerate(masks):
                    assert mask.tolist() == fresh(grammar, [*taken, *path[:length]]).masks()[0].tolist()
            forbidden = np.flatnonzero(~allowed_tokens(matcher.masks()[0], MODEL_SIZE))
            assert len(matcher.masks([int(forbidden[0]), 5])) == 1
            path = walk(grammar, taken, rng, length=1)
            taken += path
            if not path or path == [EOS] or matcher.accept(path[0]):
                break


@pytest.mark.parametrize(
    "answer", [Grammar.regex("[0-9]+x"), Grammar.json_schema(PERSON), Grammar.lark('start: "12x"')]
)
def test_reasoning_before_an_answer_is_free(answer: Grammar) -> None:
    right = '{"name": "a", "age": 1, "friend": null}' if answer.kind == "JSON schema" else "12x"
    begun, own = answer.behind_reasoning(begun=True), answer.behind_reasoning(begun=False)
    for grammar, text, whole in (
        (begun, f"I say {right[:3]}</think>\n\n{right}", True),
        (begun, f"</think>{right}", True),
        (begun, f"a</think>b</think>{right}", False),
        (begun, right, False),
        (own, f"\n<think>yes</think>{right}", True),
        (own, right, True),
        (own, f"yes</think>{right}", False),
    ):
        assert allows_all(grammar, text) == whole, text


def test_an_answer_may_match_the_other_grammar_instead() -> None:
    for answer, right in ((Grammar.regex("[0-9]+x"), "12x"), (Grammar.lark('start: "yes"'), "yes")):
        either = answer.or_lark('start: "<call>" name "</call>"\nname: /[a-z]+/')
        behind = either.behind_reasoning(begun=True)
        for text, whole in ((right, True), ("<call>aaa</call>", True), (f"<call>{right}", False), ("<call>12x", False)):
            assert allows_all(either, text) == whole, text
            assert allows_all(behind, f"<call></think>{text}") == whole, text


def allows_all(grammar: Grammar, text: str) -> bool:
    """Whether a text is a whole answer. (Of what is forced, only the tokens that encode it are allowed.)"""
    matcher = COMPILER.matcher(grammar)
    for token in WordTokenizer().encode(text):
        if not allowed_tokens(matcher.masks()[0], MODEL_SIZE)[token]:
            return False
        if matcher.accept(token):
            return True
    return bool(allowed_tokens(matcher.masks()[0], MODEL_SIZE)[EOS])


def fresh(grammar: Grammar, tokens: list[int]) -> GrammarMatcher:
    matcher = COMPILER.matcher(grammar)
    for token in tokens:
        matcher.accept(token)
    return matcher


def walk(grammar: Grammar, taken: list[int], rng: np.random.Generator, length: int) -> list[int]:
    """Tokens that the grammar allows one after the other."""
    matcher, path = fresh(grammar, taken), []
    for _ in range(length):
        path.append(int(rng.choice(np.flatnonzero(allowed_tokens(matcher.masks()[0], MODEL_SIZE)))))
        if matcher.accept(path[-1]):
            break
    return path


def test_logits_that_are_not_finite_are_found_behind_a_mask() -> None:
    mask = np.array([0b0110], np.int32)
    logits = np.array([9.0, 1.0, 2.0, 3.0], np.float32)
    greedy = SamplingParams(temperature=0)
    assert sample(logits, greedy, None, 0, 0, mask) == 2
    for broken in (np.nan, np.inf):
        with pytest.raises(UserError, match="not finite"):
            sample(np.array([broken, 1.0, 2.0, 3.0], np.float32), greedy, None, 0, 0, mask)
    with pytest.raises(UserError, match="not finite"):
        sample(np.array([1.0, -np.inf, -np.inf, 3.0], np.float32), greedy, None, 0, 0, mask)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Grammar.json_schema("{"), "the JSON schema is not valid JSON: Expecting property name"),
        (lambda: Grammar.json_schema("[1]"), r"the JSON schema is \[1\]; it must be a JSON object"),
        (lambda: Grammar.json_schema({"const": {1, 2}}), "the JSON schema is not valid JSON: Object of type set"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "the JSON schema is not valid JSON: Out of range"),
        (lambda: Grammar.json_schema('{"items":' * 200 + "{}" + "}" * 200), "nests deeper than 100 levels"),
        (lambda: Grammar.json_schema('{"items":' * 10**5 + "{}" + "}" * 10**5), "nests deeper than 100 levels"),
        (
            lambda: Grammar.json_schema({"enum": ["x" * 2**20]}),
            "the JSON schema has 1048590 characters; at most 1048576",
        ),
        (lambda: Grammar.regex("x" * 2**21), "the regular expression has 2097152 characters"),
        (lambda: Grammar.regex(""), "the regular expression is ''; it must be text of at least one character"),
        (lambda: Grammar.lark(None), "the Lark grammar is None"),
        (lambda: Grammar.regex("\ud800"), "half of a surrogate pair"),
        (lambda: SamplingParams(grammar="a+"), "grammar is 'a\\+'; it must be a Grammar"),
    ],
)
def test_what_is_no_grammar_is_refused_at_once(make, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make()


def test_a_grammar_that_becomes_too_complex_ends_its_request_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    import llguidance

    limits = partial(llguidance.LLParserLimits, max_items_in_row=60)
    monkeypatch.setattr(llguidance, "LLParserLimits", limits)
    ambiguous = Grammar.lark('start: x\nx: x x | x x x | "a" | "b"')
    neighbour = SamplingParams(seed=2, grammar=GRAMMARS["schema"], max_tokens=60)
    expected = answers(engine_with(None), [neighbour])
    for drafts in (None, 2):
        engine = engine_with(drafts)
        failing, fine = [
            engine.submit(PROMPT, params)
            for params in (SamplingParams(seed=1, grammar=ambiguous, ignore_eos=True, max_tokens=60), neighbour)
        ]
        updates = run(engine)
        last = updates[failing][-1]
        assert last.finish_reason == "error" and isinstance(last.error, UserError)
        assert re.fullmatch("the grammar cannot go on: .*items.* max is 60; [^\n<]*", str(last.error))
        assert re.fullmatch("[ab]+", text_of(updates[failing]))
        assert tokens_of(updates[fine]) == expected[0][0]


def multiplying_alternatives() -> Grammar:
    def either(number: int) -> dict:
        return {"anyOf": [{"$ref": f"#/$defs/a{number + 1}"}, {"type": "integer", "minimum": number}]}

    definitions = {f"a{i}": {"allOf": [either(i), either(i)]} for i in range(40)}
    return Grammar.json_schema({"$ref": "#/$defs/a0", "$defs": {**definitions, "a40": {"type": "string"}}})


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.regex("("), r'the regular expression cannot be used: .*invalid regex "\(".*: unclosed group$'),
        (Grammar.regex("(?=a)b"), "look-around, including look-ahead and look-behind, is not supported"),
        (Grammar.regex(r"[^\s\S]"), "the regular expression cannot be used: no text matches it"),
        (Grammar.lark('start: "a" b'), 'the Lark grammar cannot be used: .*unknown name: "b"$'),
        (Grammar.lark("start: <nothing>"), 'unknown special token: "<nothing>"$'),
        (Grammar.lark("start: start"), "no text matches it"),
        (Grammar.lark("hello"), "the Lark grammar cannot be used: "),
        (Grammar.json_schema({"type": "strin"}), "the JSON schema cannot be used: Invalid type: strin"),
        (Grammar.json_schema({"not": {}}), r'Unimplemented keys: \["not"\]'),
        (Grammar.json_schema({"$ref": "#/$defs/a"}), "Pointer '/\\$defs/a' does not exist"),
        (Grammar.json_schema({"type": "string", "minLength": 5, "maxLength": 3}), "Unsatisfiable schema: minLength"),
        (multiplying_alternatives(), "the JSON schema cannot be used: schema too large"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(grammar: Grammar, reason: str) -> None:
    engine = engine_with(None)
    for refuses in (engine.prepare, engine.check):
        with pytest.raises(UserError, match=reason) as refused:
            refuses(PROMPT, SamplingParams(grammar=grammar))
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def hostile_references() -> Grammar:
    links = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}
    return Grammar.json_schema({"$ref": "#/$defs/a0", "$defs": {**links, "a5000": {"type": "string"}}})


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param(Grammar.json_schema({"type": "integer", "multipleOf": 70_000_001}), id="multiple"),
        pytest.param(hostile_references(), id="references"),
        pytest.param(
            Grammar.lark("start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(5000)) + '\na5000: "x"'),
            id="rules",
        ),
    ],
)
def test_a_hostile_grammar_is_refused_in_bounded_time_and_the_process_lives(grammar: Grammar) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="is too complex: it (takes more than 2 s to compile|refers from rule to rule)"):
        engine_with(None).prepare(PROMPT, SamplingParams(grammar=grammar))
    assert time.monotonic() - started < 15


def test_without_llguidance_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = make_engine(FakeModel(vocab_size=MODEL_SIZE), grammars=GrammarCompiler(WordTokenizer(), MODEL_SIZE))
    with pytest.raises(UserError, match="pip install llguidance"):
        engine.prepare(PROMPT, SamplingParams(grammar=GRAMMARS["regex"]))
    with pytest.raises(UserError, match="a grammar needs a tokenizer"):
        make_engine().prepare(PROMPT, SamplingParams(grammar=GRAMMARS["regex"]))
