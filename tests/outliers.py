"""Checkpoints with outliers that are undone elsewhere, exact in real numbers: what do 8 bits and float16 make of them?

`python tests/outliers.py q4f16_1+vnni16:int8 q8f16_1+mlc:int8 …` prints the table of docs/numerics.md for these
quantizations and caches: mean divergence (nats) from the unquantized demo, and right answers.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from golden.checkpoints import write_folder

from mlc_dsv3 import LLM
from mlc_dsv3.bench.quality import ask, divergence_of, log_softmax, whole_chat
from mlc_dsv3.compiler import compile_model
from mlc_dsv3.demo import checkpoint_path
from mlc_dsv3.demo.questions import held_out_questions
from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.weights import Checkpoint, convert
from relax_model.config import ModelConfig

Tensors = dict[str, np.ndarray]
CHANNEL, PAIR = 5, 3  # the outliers among others


def _ending(values: Tensors, *names: str) -> list[str]:
    return [name for name in values if name.endswith(names)]


def _scale_rows(values: Tensors, name: str, factors: np.ndarray) -> None:
    values[name] = values[name] * factors[:, None]


def _keys(values: Tensors, config: ModelConfig, factors: np.ndarray) -> None:
    """The channels of rotary keys times `factors` (rope,), those of rotary queries divided by them."""
    for name in _ending(values, "kv_a_proj_with_mqa.weight"):
        _scale_rows(values, name, np.concatenate([np.ones(config.kv_lora_rank), factors]))
    for name in _ending(values, "q_b_proj.weight", "q_proj.weight"):
        head = np.concatenate([np.ones(config.qk_nope_head_dim), 1 / factors])
        _scale_rows(values, name, np.tile(head, config.num_attention_heads))


def keys(values: Tensors, config: ModelConfig, factor: float) -> None:
    """Rotary keys as a whole."""
    _keys(values, config, np.full(config.qk_rope_head_dim, factor))


def rotary_pair(values: Tensors, config: ModelConfig, factor: float) -> None:
    """One pair of rotary keys' channels."""
    rope, factors = config.qk_rope_head_dim, np.ones(config.qk_rope_head_dim)
    factors[[2 * PAIR, 2 * PAIR + 1] if config.rope.interleaved else [PAIR, PAIR + rope // 2]] = factor
    _keys(values, config, factors)


def latent_channel(values: Tensors, config: ModelConfig, factor: float) -> None:
    """One latent channel, undone in kv_b_proj."""
    factors = np.ones(config.kv_lora_rank)
    factors[CHANNEL] = factor
    for name in _ending(values, "kv_a_layernorm.weight"):
        values[name] = values[name] * factors
    for name in _ending(values, "kv_b_proj.weight"):
        values[name] = values[name] / factors


def normed_channel(values: Tensors, config: ModelConfig, factor: float) -> None:
    """One channel of what a layer's norms give, undone in the matrices that take it: 8-bit activations meet it."""
    for name in _ending(values, "input_layernorm.weight", "post_attention_layernorm.weight"):
        values[name] = values[name].copy()
        values[name][CHANNEL] *= factor
    for name in _ending(
        values, "q_a_proj.weight", "q_proj.weight", "kv_a_proj_with_mqa.weight", "gate_proj.weight", "up_proj.weight"
    ) + _ending(values, "mlp.gate.weight"):
        values[name] = values[name].copy()
        values[name][:, CHANNEL] /= factor


RECIPES: dict[str, Callable[[Tensors, ModelConfig, float], None]] = {
    recipe.__name__: recipe for recipe in (keys, rotary_pair, latent_channel, normed_channel)
}


def write_outliers(source: Path, output: Path, recipe: str, factor: float) -> Path:
    """The checkpoint folder `source` with a recipe's outliers, as `output`; in bfloat16, which powers of two keep."""
    checkpoint = Checkpoint.open(source)
    values = {name: checkpoint.read(name) for name in checkpoint.names()}
    RECIPES[recipe](values, checkpoint.model_config, factor)
    write_folder(output, checkpoint.config, {name: value.astype(ml_dtypes.bfloat16) for name, value in values.items()})
    for file in source.iterdir():
        if file.name != "config.json" and "safetensors" not in file.name:
            shutil.copy(file, output)
    return output


def read(artifact: Path, library: Path, device: str, count: int) -> list[np.ndarray]:
    """Log-probabilities after every token of the first held-out questions and their answers."""
    with LLM(artifact, model_lib=library, device=device) as model:
        chats = [whole_chat(model, question) for question in held_out_questions(count)]
        return [log_softmax(model.logits(chat)) for chat in chats]


def mean_divergence(reference: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Mean over the chats of KL(reference ‖ other), in nats."""
    return statistics.fmean(divergence_of(*each) for each in zip(reference, other, strict=True))


def _right(artifact: Path, library: Path, device: str, count: int) -> float:
    with LLM(artifact, model_lib=library, device=device) as model:
        return ask(model, held_out_questions(count))[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="+", metavar="QUANTIZATION:CACHE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--factors", default="1,16,256,4096")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--no-answers", action="store_true", help="divergence alone")
    parser.add_argument("--as-they-are", action="store_true", help="convert without balancing")
    return parser.parse_args()


def main() -> None:
    """The table, a line for each quantization, recipe and factor."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = Checkpoint.open(checkpoint_path()).model_config
        compile_model(config, "q0f32", "cpu", folder / "reference.so")
        convert(Checkpoint.open(checkpoint_path()), "q0f32", folder / "reference")
        reference = read(folder / "reference", folder / "reference.so", "cpu", asked.questions)
        for subject in asked.subjects:
            quantization, _, cache = subject.partition(":")
            stored, library = quantization.removesuffix("+mlc"), folder / f"{subject.replace(':', '-')}.so"
            compile_model(config, stored, asked.device, library, cache_dtype=cache or None)
            for recipe in asked.recipes.split(","):
                for factor in map(float, asked.factors.split(",")):
                    source, artifact = folder / f"{recipe}-{factor}", folder / f"{recipe}-{factor}-{stored}"
                    if not source.exists():
                        write_outliers(checkpoint_path(), source, recipe, factor)
                    if not artifact.exists():
                        convert(Checkpoint.open(source), stored, artifact, balance=not asked.as_they_are)
                    found, right = "not finite", ""
                    with contextlib.suppress(NotFiniteError):
                        other = read(artifact, library, asked.device, asked.questions)
                        if all(np.isfinite(each).all() for each in other):
                            found = f"{mean_divergence(reference, other):.4f}"
                        if not asked.no_answers:
                            right = f"{_right(artifact, library, asked.device, asked.questions):.1%}"
                    print(f"| {subject} | {recipe} | {factor:g} | {found} | {right} |", flush=True)


if __name__ == "__main__":
    main()
