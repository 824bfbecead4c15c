"""The demo's byte-level BPE tokenizer, trained on text of chats.py, and its chat template.

Written as the files that Hugging Face tools read: tokenizer.json and tokenizer_config.json.
"""

import json
import pathlib
import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlc_dsv3.demo.chats import Message, training_chat

BOS, EOS, USER, ASSISTANT, SYSTEM, PAD = "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"
SPECIAL_TOKENS = (BOS, EOS, USER, ASSISTANT, SYSTEM, PAD)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ '<|system|>' + message['content'] | trim }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(vocab_size: int, seed: int, chats: int = 20_000) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` entries; every digit is its own token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=20,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, chats), trainer)
    return tokenizer


def _texts(seed: int, chats: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(chats):
        for message in training_chat(rng):
            yield message["content"]


def render(messages: list[Message], add_generation_prompt: bool = False) -> list[tuple[str, bool]]:
    """The pieces of a chat as CHAT_TEMPLATE renders it (a test compares the two), and whether the assistant speaks."""
    pieces = [(BOS, False)]
    for message in messages:
        text = message["content"].strip()
        if message["role"] == "assistant":
            pieces += [(ASSISTANT, False), (text + EOS, True)]
        else:
            pieces.append(((USER if message["role"] == "user" else SYSTEM) + text, False))
    if add_generation_prompt:
        pieces.append((ASSISTANT, False))
    return pieces


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
