"""Measures a demo checkpoint on the held-out questions: python -m mlc_dsv3.demo.training.evaluate FOLDER.

Prints, for each kind of question, the share of right answers in full precision, with 4-bit weights, and of the
commonest answer, and how often the MTP layer's draft is the main model's choice.
"""

import argparse
import collections
import pathlib

import torch
from tokenizers import Tokenizer

from mlc_dsv3.demo.questions import Question, commonest_answer_score, held_out_questions, is_right
from mlc_dsv3.demo.training.checkpoint import load_model
from mlc_dsv3.demo.training.model import DemoModel, causal_bias
from mlc_dsv3.demo.training.tokenizer import EOS, render

BATCH = 64


def _encode(tokenizer: Tokenizer, messages: list[dict[str, str]], prompt: bool) -> list[int]:
    return [i for text, _ in render(messages, add_generation_prompt=prompt) for i in tokenizer.encode(text).ids]


def _by_length(rows: list[list[int]]) -> list[list[int]]:
    """The indices of `rows` in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def _forward(model: DemoModel, rows: list[list[int]]) -> tuple[torch.Tensor, ...]:
    """The hidden states of `rows`, padded at their ends, with their tokens, positions and attention bias."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    positions = torch.arange(longest).expand_as(tokens)
    bias = causal_bias(torch.zeros_like(tokens))
    return model(tokens, positions, bias), tokens, positions, bias


@torch.no_grad()
def told_score(model: DemoModel, tokenizer: Tokenizer, questions: list[Question]) -> dict[str, float]:
    """A quick score: per kind, how often every token of the expected sentence is the model's first choice."""
    prompts = [_encode(tokenizer, list(q.messages), prompt=True) for q in questions]
    rows = [p + tokenizer.encode(q.sentence + EOS).ids for p, q in zip(prompts, questions, strict=True)]
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for indices in _by_length(rows):
        hidden, *_ = _forward(model, [rows[i] for i in indices])
        choices = model.lm_head(hidden).argmax(-1)
        for row, i in enumerate(indices):
            start = len(prompts[i])
            right[questions[i].kind].append(choices[row, start - 1 : len(rows[i]) - 1].tolist() == rows[i][start:])
    return {kind: sum(values) / len(values) for kind, values in right.items()}


@torch.no_grad()
def answer(model: DemoModel, tokenizer: Tokenizer, questions: list[Question], max_tokens: int = 48) -> list[list[int]]:
    """The greedy answer of the model to each question as token ids, without the end token."""
    end = tokenizer.token_to_id(EOS)
    prompts = [_encode(tokenizer, list(q.messages), prompt=True) for q in questions]
    answers: list[list[int]] = [[] for _ in questions]
    for indices in _by_length(prompts):
        rows = {i: list(prompts[i]) for i in indices}
        while rows:
            running = list(rows)
            hidden, *_ = _forward(model, [rows[i] for i in running])
            ends = torch.tensor([len(rows[i]) - 1 for i in running])
            for i, token in zip(
                running, model.lm_head(hidden[torch.arange(len(running)), ends]).argmax(-1).tolist(), strict=True
            ):
                if token == end or len(answers[i]) == max_tokens:
                    del rows[i]
                    continue
                answers[i].append(token)
                rows[i].append(token)
    return answers


@torch.no_grad()
def draft_acceptance(
    model: DemoModel, tokenizer: Tokenizer, questions: list[Question], answers: list[list[int]]
) -> float:
    """How often, along its own greedy answers, the model chooses what the MTP layer drafted (the second next token)."""
    prompts = [_encode(tokenizer, list(q.messages), prompt=True) for q in questions]
    rows = [p + a + [tokenizer.token_to_id(EOS)] for p, a in zip(prompts, answers, strict=True)]
    accepted = drafted = 0
    for indices in _by_length(rows):
        hidden, tokens, positions, bias = _forward(model, [rows[i] for i in indices])
        drafts = model.lm_head(model.draft(hidden, tokens.roll(-1, 1), positions, bias)).argmax(-1)
        for row, i in enumerate(indices):
            start = len(prompts[i]) - 1
            expected = rows[i][start + 2 :]
            got = drafts[row, start : start + len(expected)].tolist()
            accepted += sum(a == b for a, b in zip(got, expected, strict=True))
            drafted += len(expected)
    return accepted / drafted


def score(tokenizer: Tokenizer, questions: list[Question], answers: list[list[int]]) -> dict[str, float]:
    """The share of right answers per kind, and over all questions under "all"."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for question, ids in zip(questions, answers, strict=True):
        verdict = is_right(question, tokenizer.decode(ids))
        right[question.kind].append(verdict)
        right["all"].append(verdict)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a demo checkpoint on held-out questions.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    model = load_model(args.folder)
    questions = held_out_questions(args.count)
    columns = {}
    acceptance = {}
    for name, rounded in (("full", False), ("4 bits", True)):
        model.rounding.on = rounded
        answers = answer(model, tokenizer, questions)
        columns[name] = score(tokenizer, questions, answers)
        acceptance[name] = draft_acceptance(model, tokenizer, questions, answers)
    columns["commonest"] = commonest_answer_score(questions)
    columns["commonest"]["all"] = sum(columns["commonest"].values()) / len(columns["commonest"])
    print(f"{'kind':<12}" + "".join(f"{name:>11}" for name in columns))
    for kind in columns["full"]:
        print(f"{kind:<12}" + "".join(f"{column[kind]:>11.1%}" for column in columns.values()))
    print("drafts accepted: " + ", ".join(f"{name} {value:.1%}" for name, value in acceptance.items()))


if __name__ == "__main__":
    main()
