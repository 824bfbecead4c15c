"""Learning `e_score_correction_bias` on a text, by the rule that needs no auxiliary loss.

After each stretch of the text an expert's bias moves by `speed` towards what evens out the load (DeepSeek-V3 report,
section 2.1.2; Wang et al. 2024, arXiv:2408.15664). The bias takes part in the choice alone, so that weights stay what
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.experts.load import ExpertLoad, count_load
from mlc_dsv3.experts.reading import STRETCH, Reader, Stretch
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.aligned import aligned_zeros
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.model import CompiledModel, set_threads
from mlc_dsv3.weights import Artifact
from mlc_dsv3.weights.plan import SHARD_BYTES, plan
from mlc_dsv3.weights.writer import Piece, write_artifact
from relax_model.layout import layout_of

# Of a text: what its end is measured on has not been learnt from. Logits are compared on so many tokens of it.
_HELD_OUT = 0.2
_COMPARED = STRETCH


@dataclass(frozen=True)
class Rebalanced:
    """On the text's end: the load before and after, and the mean KL divergence of the model's next token in nats."""

    before: ExpertLoad
    after: ExpertLoad
    divergence: float
    learnt_tokens: int
    held_out_tokens: int


def rebalance(
    artifact: Artifact,
    library: Path,
    tokens: Sequence[int],
    output: Path,
    *,
    passes: int,
    speed: float,
    context_window: int | None = None,
) -> Rebalanced:
    """Learn the biases on the text's beginning, `passes` times over, and write an artifact with them to `output`.
    `context_window` is the `Reader`'s.

    UserError for a model without correction biases or a text that is too short.
    """
    config = artifact.model_config
    router = config.router
    if router is None or not router.has_correction_bias:
        raise UserError(f"{artifact.path} has no e_score_correction_bias to learn; its routers choose by scores alone")
    least = 4 * router.n_routed_experts
    if len(tokens) < least:
        raise UserError(f"the text has {len(tokens)} tokens; {least} at least say something of {config.model_type}")
    cut = len(tokens) - max(1, int(_HELD_OUT * len(tokens)))
    learnt, held_out = tokens[:cut], tokens[cut:]
    arrays = artifact.map_parameters()
    set_threads(None)
    biases = {
        layer: f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        for layer in range(config.num_hidden_layers)
        if config.moe_layers[layer]
    }
    for name in biases.values():
        arrays[name] = _writable(arrays[name])
    reader = Reader(CompiledModel.from_arrays(Library(library), config, arrays), context_window)
    stretches = reader.stretches(learnt)
    compared = reader.stretches(held_out[:_COMPARED])
    with progress("Learning the routers' biases", total=passes * len(stretches) + 2) as advance:
        before = count_load(router, reader.moe_layers, reader.read_all(held_out))
        reference = _read_log_softmax(reader, compared)
        advance(1)
        for _ in range(passes):
            for stretch in stretches:
                load = count_load(router, reader.moe_layers, [reader.read(stretch)])
                for name, counts in zip(biases.values(), load.counts, strict=True):
                    arrays[name] += np.float32(speed) * np.sign(counts.mean() - counts).astype(np.float32)
                advance(1)
        after = count_load(router, reader.moe_layers, reader.read_all(held_out))
        changed = _read_log_softmax(reader, compared)
        advance(1)
    divergence = float((np.exp(reference) * (reference - changed)).sum(axis=1).mean())
    _write(artifact, arrays, output)
    return Rebalanced(before, after, divergence, len(learnt), len(held_out))


def _writable(bias: np.ndarray) -> np.ndarray:
    """A copy that the model reads in place."""
    copy = aligned_zeros(bias.shape, str(bias.dtype))
    copy[...] = bias
    return copy


def _read_log_softmax(reader: Reader, stretches: Sequence[Stretch]) -> np.ndarray:
    """float64 (tokens, vocabulary)."""
    return np.concatenate([_log_softmax(reader.read(stretch, want_logits=True).logits) for stretch in stretches])


def _log_softmax(logits: np.ndarray | None) -> np.ndarray:
    assert logits is not None
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _write(artifact: Artifact, arrays: dict[str, np.ndarray], output: Path) -> None:
    def stored(name: str) -> dict[str, np.ndarray]:
        return {name: arrays[name]}

    write_artifact(
        output,
        artifact.chat_config,
        plan(artifact.model_config, layout_of(artifact.quantization), SHARD_BYTES),
        (Piece(0, partial(stored, name)) for name in arrays),
        small_files=artifact.path,
        title="Writing weights",
        progress=progress,
    )
