"""How a row is sampled, in the words that the compiled `sample` takes beside the logits: the host writes, kernels read.

ROW          which row of the logits
TEMPERATURE  bits of a float32; 0: the likeliest token, and nothing below is read
LEAST        bits of a float32: the least logarithm, at most 0, of a token's weight beside the likeliest's (min_p)
TOP_K        0: all
TOP_P        share of the weight in units of 2^-31; 0: all
NUMBER       the random number in [0, 1), in units of 2^-31

`sample_masked` takes beside them which tokens may be chosen: token i is bit i mod MASK_BITS of word i div MASK_BITS.
"""

from __future__ import annotations

import math

import numpy as np

WORDS = 6
ROW, TEMPERATURE, LEAST, TOP_K, TOP_P, NUMBER = range(WORDS)
FRACTION_BITS = 31
MASK_BITS = 32
CHUNK = 4096  # tokens of a row of which a block finds the likeliest
# Below e^-104 a float32 weight is zero: such tokens are never drawn, and change no sum.
_LEAST = -110.0
# Between these, logits over temperature stay in float32's range; below, all but the likeliest weigh nothing, and above
# none weighs less.
_TEMPERATURES = (float(np.finfo(np.float32).tiny), 1e30)


def mask_words(vocabulary: int) -> int:
    """Words of a mask."""
    return -(-vocabulary // MASK_BITS)


def sampling_words(
    row: int, *, temperature: float, top_p: float, top_k: int, min_p: float, number: float
) -> np.ndarray:
    """int32 (WORDS,) of a row's valid sampling parameters; `number` in [0, 1) is the draw's. 0 or less keeps all in
    `top_k`, 1 in `top_p`, 0 in `min_p`."""
    words = np.zeros(WORDS, np.int32)
    words[ROW] = row
    if temperature > 0:
        least = max(math.log(min_p), _LEAST) if min_p > 0 else _LEAST
        words[[TEMPERATURE, LEAST]] = np.array([np.clip(temperature, *_TEMPERATURES), least], np.float32).view(np.int32)
        words[TOP_K] = min(max(top_k, 0), 2**31 - 1)
        words[TOP_P] = np.clip(int(top_p * 2**FRACTION_BITS), 1, 2**FRACTION_BITS - 1) if top_p < 1 else 0
        words[NUMBER] = int(number * 2**FRACTION_BITS)
    return words
