"""A model and a tokenizer without weights, for tests of the engine.

The model keeps tokens in its pages in place of latents, each with the form of attention that stored it, and its logits
are a hash of what it reads back through the page table. A wrong page, position, length or form changes the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from mlc_dsv3.runtime.available import available_memory
from mlc_dsv3.runtime.batch import Batch, DraftBatch, StepOutput
from mlc_dsv3.runtime.capacity import MemoryNeed
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.sampling import SamplingParams

VOCAB = 256
PAGE = 4
BLOCK = 16


@dataclass(frozen=True)
class FakeMetadata:
    """The fields of a library's metadata that the engine reads."""

    page_size: int = PAGE
    max_rows: int = 16
    exact_rows: int = 16
    functions: tuple[str, ...] = ("step", "prefill", "draft", "follow")
    context_window: int = 96
    prefill_block: int = BLOCK


class FakeModel:
    """Stands in for `CompiledModel`; remembers how many rows each step had."""

    def __init__(self, metadata: FakeMetadata | None = None, vocab_size: int = VOCAB) -> None:
        self.metadata = metadata or FakeMetadata()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.steps: list[Batch] = []
        self.drafts: list[DraftBatch] = []
        self.breaks_on: int | None = None  # logits behind this token are NaN
        self.cache = self.next_tokens = np.empty(0)

    def allocate_cache(self, num_pages: int) -> None:
        # Poison: a position that is read before it is written does not look like a token.
        self.cache = np.full((num_pages, self.metadata.page_size, 2), -1, np.int32)
        self.next_tokens = np.full((num_pages, self.metadata.page_size), -1, np.int32)

    def cache_bytes_per_page(self) -> int:
        return self.metadata.page_size * 8

    def read_pages(self, pages: Sequence[int]) -> np.ndarray:
        return np.ascontiguousarray(self.cache[list(pages)]).reshape(-1).view(np.uint8)

    def write_pages(self, pages: Sequence[int], content: np.ndarray) -> None:
        self.cache[list(pages)] = content.view(np.int32).reshape(len(pages), *self.cache.shape[1:])

    def available_memory(self) -> int:
        return available_memory()

    def memory_need(self, max_batch: int) -> MemoryNeed:
        size = self.metadata.page_size
        return MemoryNeed(0, True, page=size * 8, page_size=size, cache_dtype="int8", working=lambda window: 0)

    def step(self, batch: Batch) -> StepOutput:
        rows, size = len(batch.tokens), self.metadata.page_size
        self._check(batch)
        self.steps.append(batch)
        pages = batch.page_table[batch.sequences, batch.positions // size]
        self.cache[pages, batch.positions % size, 0] = batch.tokens
        self.cache[pages, batch.positions % size, 1] = batch.expanded
        logits = np.stack([self._logits(self._read(batch, row)) for row in batch.wanted])
        assert len(batch.positions) == rows
        return StepOutput(logits, np.stack([batch.positions, batch.tokens], axis=1).astype(np.float32))

    def draft(self, batch: DraftBatch) -> StepOutput:
        """The MTP layer, which sees the tokens after its rows' own and is wrong a quarter of the time.

        Its hidden states say, as the main model's do, which token stands where.
        """
        self.follow(batch)
        logits = []
        for row in range(len(batch.tokens)):
            guess = self._logits(history := self._history(batch, row))
            logits.append(np.roll(guess, 1) if zlib.crc32(history.tobytes()) % 4 == 0 else guess)
        return StepOutput(np.stack(logits), np.stack([batch.positions + 1, batch.tokens], axis=1).astype(np.float32))

    def follow(self, batch: DraftBatch) -> None:
        """Only store the tokens after."""
        assert 1 <= len(batch.tokens) <= self.metadata.max_rows
        _check_places(batch)
        assert batch.sources.dtype == np.int32
        self.drafts.append(batch)
        hidden, size = batch.hidden[batch.sources], self.metadata.page_size
        assert hidden.shape == (len(batch.tokens), 2) and hidden.dtype == np.float32
        assert np.array_equal(hidden[:, 0], batch.positions), "a hidden state of another position"
        pages = batch.page_table[batch.sequences, batch.positions // size]
        self.next_tokens[pages, batch.positions % size] = batch.tokens
        for row, position in enumerate(batch.positions):
            # The main model's, or one that was drafted; the latter is not where an earlier request's pages end.
            known = {self.cache[pages[row], position % size, 0], self._history(batch, row)[position, 0]}
            assert hidden[row, 1] in known, "a hidden state of another token"

    def _history(self, batch: DraftBatch, row: int) -> np.ndarray:
        """What the main model would read after the row's next token: tokens and forms."""
        positions = np.arange(batch.positions[row] + 1)
        pages, places = batch.page_table[batch.sequences[row], positions // PAGE], positions % PAGE
        stored, following = self.cache[pages, places], self.next_tokens[pages, places]
        history = np.zeros((len(positions) + 1, 2), np.int32)
        history[0] = stored[0]
        history[1:, 0] = following
        same = stored[1:, 0] == following[:-1]
        history[1:-1, 1] = np.where(same, stored[1:, 1], 0)
        return history

    def sample(self, output: StepOutput, draws: list[Draw]) -> list[int]:
        return [draw.from_logits(output.logits) for draw in draws]

    def reference(self, tokens: list[int], prompt_length: int) -> np.ndarray:
        """The logits (vocab_size,) after `tokens`, from the rule for the forms instead of a cache."""
        block = self.metadata.prefill_block
        forms = [
            int(bool(block) and (position // block + 1) * block <= prompt_length) for position in range(len(tokens))
        ]
        return self._logits(np.stack([np.array(tokens), np.array(forms)], axis=1).astype(np.int32))

    def _check(self, batch: Batch) -> None:
        _check_places(batch)
        assert batch.wanted.dtype == np.int32 and len(batch.wanted) >= 1
        if batch.expanded:
            block = self.metadata.prefill_block
            assert batch.positions[0] % block == 0
            assert batch.positions.tolist() == list(range(batch.positions[0], batch.positions[0] + block))
            assert set(batch.sequences.tolist()) == {0}
        else:
            assert 1 <= len(batch.tokens) <= self.metadata.max_rows

    def _read(self, batch: Batch, row: int) -> np.ndarray:
        positions = np.arange(batch.positions[row] + 1)
        pages = batch.page_table[batch.sequences[row], positions // self.metadata.page_size]
        history = self.cache[pages, positions % self.metadata.page_size]
        assert (history >= 0).all(), "a position was read that nobody wrote"
        return history

    def _logits(self, history: np.ndarray) -> np.ndarray:
        if history[-1, 0] == self.breaks_on:
            return np.full(self.config.vocab_size, np.nan, np.float32)
        seed = zlib.crc32(np.ascontiguousarray(history).tobytes())
        return np.random.default_rng(seed).normal(0, 2, self.config.vocab_size).astype(np.float32)


def _check_places(batch: Batch | DraftBatch) -> None:
    for array in (batch.tokens, batch.positions, batch.sequences, batch.page_table):
        assert array.dtype == np.int32
    places = list(zip(batch.sequences.tolist(), batch.positions.tolist(), strict=True))
    assert len(set(places)) == len(places)


class FakeStream:
    """Token n is one byte, n; half a character is held back."""

    def __init__(self) -> None:
        self._bytes = b""

    def push(self, token: int) -> str:
        self._bytes += bytes([token % 256])
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError as error:
            if error.end == len(self._bytes) and "unexpected end" in error.reason:
                return ""
            text = self._bytes.decode(errors="replace")
        self._bytes = b""
        return text

    def finish(self) -> str:
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text


def make_engine(model: FakeModel | None = None, *, num_pages: int = 64, max_batch: int = 8, **options) -> Engine:
    """An engine on a fake model."""
    return Engine(model or FakeModel(), num_pages=num_pages, max_batch=max_batch, **options)


def run(engine: Engine, collected: dict[int, list] | None = None) -> dict[int, list]:
    """Step to the end; returns each request's updates."""
    collected = {} if collected is None else collected
    while engine.has_work:
        for update in engine.step():
            collected.setdefault(update.request_id, []).append(update)
    return collected


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> list:
    """The updates of one request, run to its end."""
    request = engine.submit(prompt, params)
    return run(engine)[request]


def tokens_of(updates: list) -> list[int]:
    return [token for update in updates for token in update.token_ids]


def text_of(updates: list) -> str:
    return "".join(update.text for update in updates)
