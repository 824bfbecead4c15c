"""From a step's logits to what each sequence gets: the drafts that are right and one more token, or an error."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_dsv3.errors import NotFiniteError, UserError
from mlc_dsv3.runtime.batch import StepOutput
from mlc_dsv3.runtime.completion import TokenLogprob
from mlc_dsv3.runtime.sampler import Draw, token_logprob
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.scheduler import Plan, Work

if TYPE_CHECKING:
    from mlc_dsv3.runtime.model import CompiledModel


@dataclass(frozen=True)
class Choice:
    """What a step gave a sequence: the drafts that are the model's own tokens and one more, with their logprobs where
    they are wanted; or an error in place of the last."""

    work: Work
    tokens: list[int]
    logprobs: list[TokenLogprob] | None
    error: UserError | None


def choose(model: CompiledModel, plan: Plan, output: StepOutput) -> list[Choice]:
    """The next tokens of every work whose last token is computed. Changes no sequence."""
    chosen, wanted, row = [], {}, 0
    for work in plan.works:
        if work.complete:
            try:
                wanted[work] = _draws(work, row)
            except UserError as error:
                chosen.append(Choice(work, [], None, error))
            row += 1 + len(work.drafts)
    draws = [draw for own in wanted.values() for draw in own]
    sampled = iter(model.sample(output, draws) if draws else ())
    for work, own_draws in wanted.items():
        own = list(itertools.islice(sampled, len(own_draws)))
        right = (draft == token for draft, token in zip(work.drafts, own, strict=False))
        kept = own[: 1 + sum(itertools.takewhile(bool, right))]
        error = kept.pop() if isinstance(kept[-1], NotFiniteError) else None
        logprobs = _logprobs(work.sequence.params, own_draws[: len(kept)], kept, output)
        chosen.append(Choice(work, kept, logprobs, error))
    return chosen


def _draws(work: Work, row: int) -> list[Draw]:
    """How the tokens after none, one, … all drafts are chosen, if these are right, from rows of logits from `row` on.

    Up to the first draft that the grammar forbids or ends with. UserError where it cannot go on.
    """
    sequence = work.sequence
    return [
        Draw(
            row + place,
            sequence.params,
            sequence.history.extended(work.drafts[:place]) if sequence.history and place else sequence.history,
            sequence.seed,
            len(sequence.tokens) + place,
            mask,
        )
        for place, mask in enumerate(sequence.masks(work.drafts))
    ]


def _logprobs(
    params: SamplingParams, draws: list[Draw], tokens: list[int], output: StepOutput
) -> list[TokenLogprob] | None:
    """Tokens' logprobs where they are wanted."""
    wanted = params.logprobs
    if wanted is None:
        return None
    return [token_logprob(output.logits[draw.row], token, wanted) for draw, token in zip(draws, tokens, strict=True)]
