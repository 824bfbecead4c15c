"""What fills the latent caches of measurements: arbitrary codes, whose scales must not be arbitrary too."""

from __future__ import annotations

import numpy as np

from relax_model.layout import CACHE_GROUP

_SCALE = 2.0**-20  # a bfloat16


def set_scales(cache: np.ndarray) -> None:
    """Give every group of a cache in 8 bits, int8 (…, cache_width), the same scale.

    Of arbitrary bits many are not finite or subnormal numbers, which are slow.
    """
    groups = cache.shape[-1] // (CACHE_GROUP + 2)
    bits = np.float32(_SCALE).view(np.uint32) >> 16
    cache[..., groups * CACHE_GROUP :] = np.full(groups, bits, np.uint16).view(np.int8)
