"""The demo's tokenizer takes any text, and its template is what training rendered."""

import json
import random

import pytest

from mlc_dsv3.demo import checkpoint_path
from mlc_dsv3.demo.chats import training_chat

tokenizers = pytest.importorskip("tokenizers")
render = pytest.importorskip("mlc_dsv3.demo.training.tokenizer").render

TEXTS = (
    "Anna is in the kitchen.",
    "  two  spaces\tand\nlines\r\n ",
    "Grüße, naïve café",
    "日本語と한국어 и русский",
    "emoji 😀👩‍👩‍👧 and 🇩🇪",
    "１２３ ½ ٣",
    "\x00\x7f\u200b\ufeff",
    "",
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_goes_there_and_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_random_unicode_goes_there_and_back(tokenizer):
    rng = random.Random(1)
    for _ in range(200):
        points = (
            rng.choice((rng.randrange(32, 0x250), rng.randrange(0x250, 0xD800), rng.randrange(0xE000, 0x110000)))
            for _ in range(20)
        )
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_its_own_token(tokenizer):
    assert tokenizer.encode("34 + 57 = 1910").tokens == ["3", "4", "Ġ+", "Ġ", "5", "7", "Ġ=", "Ġ", "1", "9", "1", "0"]


def test_special_tokens_are_single_tokens(tokenizer):
    for token in ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"):
        assert len(tokenizer.encode(token).ids) == 1


def test_ids_fit_the_model(tokenizer):
    config = json.loads((checkpoint_path() / "config.json").read_text(encoding="utf-8"))
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    for name, token in (("bos", "<|bos|>"), ("eos", "<|eos|>"), ("pad", "<|pad|>")):
        assert config[f"{name}_token_id"] == tokenizer.token_to_id(token)


@pytest.fixture(scope="module")
def hugging_face_tokenizer():
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(checkpoint_path())


def test_the_template_renders_a_conversation(hugging_face_tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hello! "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is 1 + 2?"},
    ]
    text = hugging_face_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (
        text == "<|bos|><|system|>Be kind.<|user|>Hello!<|assistant|>Hello!<|eos|><|user|>What is 1 + 2?<|assistant|>"
    )


def test_the_template_refuses_an_unknown_role(hugging_face_tokenizer):
    with pytest.raises(Exception, match="unknown role: tool"):
        hugging_face_tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_training_saw_the_tokens_that_the_template_makes(hugging_face_tokenizer, tokenizer):
    rng = random.Random(2)
    for _ in range(50):
        messages = training_chat(rng)
        ids = [i for text, _ in render(messages) for i in tokenizer.encode(text).ids]
        assert hugging_face_tokenizer.apply_chat_template(messages, return_dict=False) == ids
