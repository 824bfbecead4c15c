"""The demo model's quality in each quantization: held-out questions, and the divergence from the unquantized model."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlc_dsv3.demo.questions import Question, commonest_answer_score, held_out_questions, is_right
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.llm import LLM
from mlc_dsv3.runtime.sampling import SamplingParams

_REFERENCE = "q0f32"
# A sample of the questions is enough for the mean divergence; its logits are kept for the comparison.
_DIVERGENCE_QUESTIONS = 100
_ANSWER = SamplingParams(temperature=0, max_tokens=48)


@dataclass
class Quality:
    """What one quantization of the demo does. Accuracies are shares of right answers; `divergence` is in nats."""

    quantization: str
    size_bytes: int
    load_seconds: float
    accuracy: float
    accuracy_by_kind: dict[str, float]
    commonest_by_kind: dict[str, float]
    divergence: float | None = None
    speed: list[dict[str, object]] = field(default_factory=list)


def as_named(quantization: str) -> str:
    """What asks for exactly this quantization, and for no other layout in the place of mlc-llm's."""
    return quantization if "+" in quantization else f"{quantization}+mlc"


def measure_quality(quantizations: Sequence[str], count: int, cache_dtype: str | None = None) -> list[Quality]:
    """Ask the demo `count` held-out questions in each quantization, the same ones.

    `cache_dtype` is as `LLM`'s. The reference is q0f32 with a cache in float32.
    """
    questions = held_out_questions(count)
    prompts: list[list[int]] = []
    reference: list[np.ndarray] = []
    results = []
    for quantization in [_REFERENCE, *(name for name in quantizations if name != _REFERENCE)]:
        exactly = as_named(quantization)
        chosen = None if quantization == _REFERENCE else cache_dtype
        LLM(quantization=exactly, cache_dtype=chosen).close()  # converts and compiles, which is not loading
        started = time.perf_counter()
        with LLM(quantization=exactly, cache_dtype=chosen) as model:
            load_seconds = time.perf_counter() - started
            accuracy, by_kind = ask(model, questions)
            if not prompts:
                prompts = [whole_chat(model, question) for question in questions[:_DIVERGENCE_QUESTIONS]]
                reference = [log_softmax(model.logits(prompt)) for prompt in prompts]
            divergence = statistics.fmean(
                divergence_of(wanted, log_softmax(model.logits(prompt)))
                for wanted, prompt in zip(reference, prompts, strict=True)
            )
            results.append(
                Quality(
                    quantization,
                    model.artifact.nbytes,
                    load_seconds,
                    accuracy,
                    by_kind,
                    commonest_answer_score(questions),
                    divergence,
                )
            )
    return [result for result in results if result.quantization in quantizations]


def ask(model: LLM, questions: Sequence[Question]) -> tuple[float, dict[str, float]]:
    right: dict[str, list[bool]] = defaultdict(list)
    title = f"Asking {len(questions)} questions in {model.artifact.quantization}"
    with progress(title, total=len(questions)) as advance:
        for start in range(0, len(questions), 100):
            some = questions[start : start + 100]
            completions = model.chat([list(question.messages) for question in some], _ANSWER)
            for question, completion in zip(some, completions, strict=True):
                right[question.kind].append(is_right(question, completion.text))
            advance(len(some))
    by_kind = {kind: statistics.fmean(answers) for kind, answers in sorted(right.items())}
    return statistics.fmean(answer for answers in right.values() for answer in answers), by_kind


def whole_chat(model: LLM, question: Question) -> list[int]:
    """Token ids of the chat with its right answer."""
    answered = [*question.messages, {"role": "assistant", "content": question.sentence}]
    return list(model.tokenizer.chat_prompt(answered, add_generation_prompt=False))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence_of(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean over positions of KL(reference ‖ other)."""
    return float((np.exp(reference) * (reference - other)).sum(axis=-1).mean())
