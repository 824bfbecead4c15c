"""Packed training batches: chats of chats.py as tokens, several to a row, each chat alone in its attention.

A batch depends on (seed, step) only, so a resumed run sees what an unbroken one would.
"""

import dataclasses
import random

import torch
from tokenizers import Tokenizer

from mlc_dsv3.demo.chats import DEFAULT_MIX, Mix, training_chat
from mlc_dsv3.demo.training.tokenizer import render

# Stories and questions are dice: learning to foretell them drowns the few answers that depend on something.
OTHER_SHARE = 0.1  # of the tokens that the assistant does not speak, this share is learned
OTHER_WEIGHT = 0.1
PATIENCE = 20  # chats that may fail to fit before a batch counts as full


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed chats, all tensors (B, S); `documents` numbers the chats of a row, 0 is padding.

    `weights` says how much predicting this token counts.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor
    weights: torch.Tensor


class BatchMaker:
    """Draws batches of a size and a mix of chats."""

    def __init__(self, tokenizer: Tokenizer, seed: int | str) -> None:
        self.tokenizer = tokenizer
        self.seed = seed

    def batch(self, step: int, size: int, mix: Mix = DEFAULT_MIX) -> Batch:
        """The batch of a step, `size` tokens; one in 16 has a few chats of many stories, not many short ones."""
        rng = random.Random(f"{self.seed}/{step}")
        if step % 64 == 63:
            length, stories = 1024, 14
        elif step % 16 == 15:
            length, stories = 512, 7
        else:
            length, stories = 160, None
        rows = size // length
        tokens = torch.zeros(rows, length, dtype=torch.long)
        positions = torch.zeros(rows, length, dtype=torch.long)
        documents = torch.zeros(rows, length, dtype=torch.long)
        weights = torch.zeros(rows, length)
        used = [0] * rows
        count = [0] * rows
        misses = 0
        while misses < PATIENCE:
            ids, spoken = self.encode_chat(rng, stories, mix)
            if stories:
                ids, spoken = ids[:length], spoken[:length]
            if len(ids) > length:
                continue
            row = max((r for r in range(rows) if used[r] + len(ids) <= length), key=used.__getitem__, default=None)
            if row is None:
                misses += 1
                continue
            start, end = used[row], used[row] + len(ids)
            used[row], count[row] = end, count[row] + 1
            tokens[row, start:end] = torch.tensor(ids)
            positions[row, start:end] = torch.arange(len(ids))
            documents[row, start:end] = count[row]
            weights[row, start:end] = torch.tensor(
                [1.0 if s else (OTHER_WEIGHT if rng.random() < OTHER_SHARE else 0.0) for s in spoken]
            )
            weights[row, start] = 0.0
        return Batch(tokens, positions, documents, weights)

    def encode_chat(
        self, rng: random.Random, stories: int | None = None, mix: Mix = DEFAULT_MIX
    ) -> tuple[list[int], list[bool]]:
        """A training chat as token ids, and for each whether the assistant speaks it."""
        ids: list[int] = []
        spoken: list[bool] = []
        for text, is_answer in render(training_chat(rng, mix, stories)):
            piece = self.tokenizer.encode(text).ids
            ids += piece
            spoken += [is_answer] * len(piece)
        return ids, spoken
