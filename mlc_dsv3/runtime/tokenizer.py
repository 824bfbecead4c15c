"""A checkpoint's tokenizer: text to token ids and back, from tokenizer.json or tiktoken.model.

Reads a checkpoint's or an artifact's files; the engine and the terminal session use them through `Tokenizer`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from mlc_dsv3.errors import ModelFileError, UserError
from mlc_dsv3.runtime.call_form import CallForm, call_form
from mlc_dsv3.runtime.control_tokens import BREAK, END_OF_THINK, OWN, THINK
from mlc_dsv3.runtime.messages import ChatOptions, Conversation, Message, template_messages
from mlc_dsv3.runtime.sampled_calls import Replay, SampledCalls
from mlc_dsv3.runtime.template import ChatTemplate
from mlc_dsv3.runtime.tokenizer_config import TokenizerConfig
from mlc_dsv3.runtime.vocabulary import TiktokenVocabulary, TokenizersVocabulary, Vocabulary

_OPENING = re.compile(rf"({THINK}\s*)?({END_OF_THINK}\s*)?\Z")
_THINKING = ("thinking", "enable_thinking")  # DeepSeek-V3.1's; GLM's and Youtu's


class Tokenizer:
    """Text to token ids and back; `load` makes one from a folder.

    `eos_token_ids` ends an answer (a frozenset, maybe empty, of ids in the model's vocabulary), `bos_token_id` may be
    None, `vocab_size` is the largest id + 1 (a model's own vocabulary may be padded beyond it).
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, config: TokenizerConfig) -> None:
        self.folder = folder
        self.vocab_size = vocabulary.size
        self._vocabulary = vocabulary
        self._bytes: dict[int, bytes] = {}
        self._template: ChatTemplate | None = None
        self._config = config
        bos = *self._named_ids("bos_token"), *config.token_ids["bos_token_id"]
        self.bos_token_id: int | None = next(iter(bos), None)
        ends, known = (*config.token_ids["eos_token_id"], *self._named_ids("eos_token")), config.model_vocab_size
        self.eos_token_ids = frozenset(token for token in ends if known is None or token < known)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint or an artifact. Raises UserError where there is none or it is broken."""
        folder = Path(folder)
        config = TokenizerConfig.read(folder)
        if (folder / "tokenizer.json").exists():
            vocabulary: Vocabulary = TokenizersVocabulary(folder / "tokenizer.json")
        elif (folder / "tiktoken.model").exists():
            vocabulary = TiktokenVocabulary(folder / "tiktoken.model", config.added_tokens)
        else:
            raise UserError(f"{folder} has no tokenizer: neither tokenizer.json nor tiktoken.model is there")
        return Tokenizer(folder, vocabulary, config)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`; special tokens written out in it become their ids.

        `add_special_tokens` puts in front what the model expects before plain text (its BOS token, where it has one).
        """
        ids = self._vocabulary.encode(_without_surrogates(text), add_special_tokens)
        wants_bos = add_special_tokens and self._config.add_bos_token
        if wants_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that one token stands for: b"" for a special token and for an id without a meaning."""
        piece = self._bytes.get(token)
        if piece is None:
            piece = self._bytes[token] = self._vocabulary.token_bytes(token)
        return piece

    @property
    def hidden_tokens(self) -> Mapping[int, str]:
        """The tokens that text does not show, as `<｜end▁of▁sentence｜>`: id → name."""
        return self._vocabulary.hidden_tokens

    @property
    def strips_leading_space(self) -> bool:
        """Whether a text's first space belongs to the encoding and not to the text (SentencePiece's dummy prefix)."""
        return self._vocabulary.strips_leading_space

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template. Raises UserError where there is none."""
        if self._template is None:
            self._template = ChatTemplate.load(self.folder, self._config.chat_template)
        return self._template

    def chat_prompt(
        self, conversation: Conversation, *, add_generation_prompt: bool = True, **options: Unpack[ChatOptions]
    ) -> list[int]:
        """The ids of a conversation as the checkpoint's chat template writes it.

        Control tokens in the text of messages, tools and variables become ordinary text unless the options say
        otherwise. Raises UserError where there is no template, or with the template's words where it refuses.
        """
        rendered = self._rendered(conversation, add_generation_prompt, **options)
        parse = options.get("parse_control_tokens")
        return self.encode(rendered) if parse else self._encode_with_text_as_text(rendered)

    def chat_text(
        self, conversation: Conversation, *, add_generation_prompt: bool = True, **options: Unpack[ChatOptions]
    ) -> str:
        """The text that the chat template writes for a conversation."""
        return self._rendered(conversation, add_generation_prompt, **options).replace(BREAK, "")

    def answer_opening(self, conversation: Conversation, **options: Unpack[ChatOptions]) -> str:
        """What the template has already said for the model of its thoughts at the prompt's end, with the spaces there.

        `<think>` where the model goes on with them, `</think>` behind it or alone where it is not to think, or nothing.
        """
        return _OPENING.search(self._rendered(conversation, **options))[0]

    @property
    def thinking_variables(self) -> tuple[str, ...]:
        """The variables of the chat template that switch thinking: those of the known names that change a prompt."""

        def prompt(name: str, value: bool) -> str:
            return self._rendered([{"role": "user", "content": "x"}], template_kwargs={name: value})

        return tuple(name for name in _THINKING if prompt(name, True) != prompt(name, False))

    def _rendered(
        self,
        conversation: Conversation,
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        parse_control_tokens: bool = False,
        sampled_calls: SampledCalls | None = None,
    ) -> str:
        originals = template_messages(conversation, lambda: self._call_form)
        messages, variables, control = originals, dict(template_kwargs or {}), self._vocabulary.control_tokens
        if not parse_control_tokens:
            messages = [control.break_in_message(message, self._spoken) for message in messages]
            tools, variables = control.break_in(tools), control.break_in(variables)

        def render(messages: Sequence[Message]) -> str:
            return self.chat_template.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                variables={**self._config.special_tokens, **variables},
            )

        if sampled_calls is not None:
            replay = Replay(sampled_calls, None if parse_control_tokens else control)
            marked = [replay.marked(*pair) for pair in zip(messages, originals, strict=True)]
            if marked != messages and (restored := replay.restored(render(marked))) is not None:
                return restored
        return render(messages)

    @functools.cached_property
    def _call_form(self) -> CallForm:
        return call_form(
            lambda messages: self.chat_template.render(messages, variables=dict(self._config.special_tokens))
        )

    @functools.cached_property
    def _spoken(self) -> frozenset[str]:
        """The control tokens that an assistant's words may hold."""
        control = self._vocabulary.control_tokens
        try:
            prompt = self.chat_template.render(
                [{"role": "user", "content": "x"}], variables=self._config.special_tokens
            )
        except UserError:  # a template that wants more than a question; any token may begin its turns
            prompt = " ".join(control.names)
        return control.spoken(prompt)

    def _encode_with_text_as_text(self, rendered: str) -> list[int]:
        """The ids of rendered text in which messages' control tokens are broken."""
        marked = self._vocabulary.control_tokens.mark_own(_without_surrogates(rendered))
        if BREAK not in rendered:
            # Most conversations spell out no control token, and need no second vocabulary.
            ids = self.encode(rendered)
            if self._count_control(ids) <= marked.count(OWN):
                return ids
            # A normalizer has made control tokens of other characters, such as full-width ones.
        ids = self._vocabulary.encode_chat(marked)
        if self._count_control(ids) > marked.count(OWN):
            raise ModelFileError(
                "the tokenizer",
                self.folder,
                "makes a control token of ordinary text; "
                "parse_control_tokens (chat --parse-control-tokens) accepts that",
            )
        return ids

    def _count_control(self, ids: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in ids)

    @functools.cached_property
    def _control_ids(self) -> frozenset[int | None]:
        """Without the unknown token, which ordinary text may become."""
        names = self._vocabulary.control_tokens.names - {self._config.special_tokens.get("unk_token")}
        return frozenset(map(self._vocabulary.token_id, names))

    def _named_ids(self, role: str) -> list[int]:
        token = self._vocabulary.token_id(self._config.special_tokens.get(role, ""))
        return [] if token is None else [token]


def _without_surrogates(text: str) -> str:
    # Lone surrogates come from terminals and JSON; neither library takes them.
    return text.encode("utf-8", "replace").decode()
