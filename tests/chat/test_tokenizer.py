"""Text to ids and back: exact bytes, special tokens, end tokens, and what a broken file says."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from chat_checkpoints import (
    BOS,
    EOS,
    TEXTS,
    byte_fallback_checkpoint,
    byte_level_checkpoint,
    tiktoken_checkpoint,
    write_json,
)

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.detokenizer import Detokenizer
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.runtime.vocabulary import KIMI_PATTERN

MAKERS = {
    "byte_level": byte_level_checkpoint,
    "byte_fallback": byte_fallback_checkpoint,
    "tiktoken": tiktoken_checkpoint,
}


@pytest.fixture(params=MAKERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path)


def random_texts(count: int) -> list[str]:
    rng = random.Random(1)
    kinds = (
        range(32, 127),
        range(0x80, 0x800),
        range(0x4E00, 0x9FFF),
        range(0x1F300, 0x1FAFF),
        range(0x10000, 0x10FFF),
    )
    return [
        "".join(chr(rng.choice(rng.choice(kinds))) for _ in range(rng.randrange(1, 40))).strip() or "x"
        for _ in range(count)
    ]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join([detokenizer.push(token) for token in ids]) + detokenizer.finish()


def test_text_comes_back_whole(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    for text in [*TEXTS[:3], *random_texts(200)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert streamed(tokenizer, ids) == text


def test_streaming_equals_decoding_of_any_tokens(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    rng = random.Random(2)
    for _ in range(500):
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randrange(30))]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_byte_level_decoding_equals_the_library(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = random.Random(3)
    for _ in range(1000):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(30))]
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_byte_fallback_decoding_equals_the_library_for_whole_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_fallback_checkpoint(tmp_path))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["Hello world", "ü€ 👍\n", *random_texts(100)]:
        ids = library.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == library.decode(ids) == text


def test_a_character_is_never_emitted_in_halves(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    for text in random_texts(100):
        detokenizer = Detokenizer(tokenizer)
        emitted = ""
        for token in tokenizer.encode(text):
            emitted += detokenizer.push(token)
            assert text.startswith(emitted)


def test_invalid_bytes_become_the_replacement_character(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiktoken_checkpoint(tmp_path))
    assert tokenizer.decode([0xE4, 0xB8, ord("x"), 0xFF]) == "\ufffdx\ufffd"
    assert streamed(tokenizer, [0xE4, 0xB8]) == "\ufffd"


def test_token_bytes_are_exact(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    text = "naïve 👍 the end"
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(text)]
    assert b"".join(pieces).decode().strip() == text
    assert any(len(piece) == 1 and piece[0] >= 0x80 for piece in pieces)
    assert tokenizer.token_bytes(tokenizer.vocab_size + 100) == b""


def test_special_tokens_in_text_are_recognised_and_not_decoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    ids = tokenizer.encode(f"{BOS}Hi<think>")
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.token_bytes(ids[0]) == b""
    assert tokenizer.token_bytes(ids[-1]) == b"<think>"
    assert tokenizer.decode(ids) == "Hi<think>"


def test_tiktoken_special_tokens_come_from_the_config(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiktoken_checkpoint(tmp_path))
    base = tokenizer.bos_token_id
    assert base is not None
    assert tokenizer.encode("[BOS]the<|im_end|><think>")[::2] == [base, base + 2]
    assert tokenizer.encode("<think>") == [base + 20]
    assert tokenizer.decode([base, *b"a", base + 20, base + 30]) == "a<think>"
    assert tokenizer.encode(f"<|reserved_token_{base + 30}|>") == [base + 30]
    assert tokenizer.vocab_size == base + 258


def test_kimi_pattern_splits_as_documented() -> None:
    encoding = tiktoken.Encoding(
        "bytes", pat_str=KIMI_PATTERN, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    import regex

    def split(text: str) -> list[str]:
        return [match.group() for match in regex.finditer(KIMI_PATTERN, text, regex.VERSION1)]

    assert split("中文English混合") == ["中文", "English", "混合"]
    assert split("北京市 Pascal") == ["北京市", " Pascal"]
    assert split("1234567890") == ["123", "456", "789", "0"]
    assert split("HELLOworld isn't  it?\n\n x") == ["HELLOworld", " isn't", " ", " it", "?\n\n", " x"]
    assert encoding.decode(encoding.encode("中文English混合")) == "中文English混合"


def test_long_runs_are_cut_as_the_checkpoints_code_cuts_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiktoken_checkpoint(tmp_path))
    text = " " * 60_000 + "th" * 210_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_tokens_are_the_union_of_all_files(tmp_path: Path) -> None:
    byte_level_checkpoint(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [7, 8]})
    write_json(tmp_path / "config.json", {"eos_token_id": 9})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token_ids == {7, 8, 9, *tokenizer.encode(EOS)}


def test_special_tokens_map_serves_where_the_config_is_silent(tmp_path: Path) -> None:
    byte_level_checkpoint(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": None})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": EOS}, "bos_token": BOS})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token_ids == set(tokenizer.encode(EOS))
    assert [tokenizer.bos_token_id] == tokenizer.encode(BOS)


def test_bos_is_added_once_and_only_on_request(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path, add_bos_token=True))
    plain = tokenizer.encode("Hi")
    assert tokenizer.encode("Hi", add_special_tokens=True) == [tokenizer.bos_token_id, *plain]
    assert tokenizer.encode(f"{BOS}Hi", add_special_tokens=True) == [tokenizer.bos_token_id, *plain]


def test_truncation_left_in_the_file_does_not_cut_prompts(tmp_path: Path) -> None:
    byte_level_checkpoint(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=64)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_lone_surrogates_do_not_stop_a_chat(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a?b"


def test_streaming_a_long_answer_takes_linear_time(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    ids = tokenizer.encode("".join(TEXTS)) * 100
    start = time.process_time()
    streamed(tokenizer, ids)
    assert (time.process_time() - start) / len(ids) < 2e-5


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": "{"}, "is not valid JSON"),
        ({"tokenizer.json": '{"model": 3}'}, "not a tokenizer that can be read"),
        ({"tiktoken.model": "IQ== zero"}, "line 1"),
        ({"tiktoken.model": "IQ== 0\nIg== 5"}, "damaged or cut off"),
        ({"tiktoken.model": "IQ== 0", "tokenizer_config.json": "]"}, "not valid JSON"),
        ({"tiktoken.model": "IQ== 0", "tokenizer_config.json": "[]"}, "must be an object"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, broken: dict[str, str], said: str) -> None:
    for name, text in broken.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    byte_level_checkpoint(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.decoder = tokenizers.decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="WordPiece"):
        Tokenizer.load(tmp_path)
