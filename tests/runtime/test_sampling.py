"""SamplingParams: what is refused, and in which words."""

from __future__ import annotations

import dataclasses

import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.sampling import SamplingParams


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0}, "top_p is 0; it must be a number above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_k": -2}, "top_k is -2; it must be a whole number of at least -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be a number of at least 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number of at least 0.001"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1"),
        ({"frequency_penalty": -2.1}, "frequency_penalty is -2.1"),
        ({"logit_bias": {-1: 1.0}}, "a token id of logit_bias is -1"),
        ({"logit_bias": {"5": 1.0}}, "a token id of logit_bias is '5'"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias of token 5 is inf; it must be a number"),
        ({"logit_bias": {5: 1e39}}, "logit_bias of token 5 is 1e+39"),
        ({"logit_bias": {5: -(10**400)}}, "logit_bias of token 5 is -1000"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": 1e39}, "temperature is 1e+39"),
        ({"top_k": 2**31}, "top_k is 2147483648"),
        ({"logit_bias": [5]}, "logit_bias is [5]"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be a whole number of at least 1"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"stop": ["a", ""]}, "stop has ''"),
        ({"stop": [5]}, "stop has 5"),
        ({"stop": 5}, "stop is 5; it must be a list of strings"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5; it must be a list of token ids"),
        ({"stop_token_ids": [[5]]}, "a token id of stop_token_ids is [5]"),
        ({"stop_token_ids": [-1]}, "a token id of stop_token_ids is -1"),
        ({"logprobs": 21}, "logprobs is 21; it must be a whole number of at least 0 and at most 20"),
        ({"logprobs": True}, "logprobs is True"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        SamplingParams(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_values_at_the_edges_are_taken() -> None:
    SamplingParams(temperature=0, top_p=1, top_k=-1, min_p=1, presence_penalty=-2, seed=2**64 - 1, max_tokens=1)
    SamplingParams(logprobs=0)
    SamplingParams(logprobs=20)


def test_one_stop_string_may_come_without_a_list() -> None:
    assert SamplingParams(stop="end").stop == ("end",)


def test_params_cannot_change_after_the_check() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = float("nan")
    assert params.logit_bias == {1: 2.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.max_tokens = 0
    with pytest.raises(UserError):
        dataclasses.replace(params, max_tokens=0)
