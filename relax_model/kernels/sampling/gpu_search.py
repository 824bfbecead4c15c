"""Searches for the token at which a running sum reaches a goal, by a block of 256 threads and without sorting.

A step of a search adds up 64 buckets of tokens, finds the one in which the goal is reached, and so learns six bits of
the token's place; the next step looks into that bucket. Once what a filter can still keep is few, it is held in shared
memory, and the row is not read again.

A token's *place* is (largest key − key) · 2^bits + id, with a key that has the order of the logits: the likelier come
first, lower ids among equals, and no two share one. Weights are whole numbers, 2^37 for the likeliest token's, so that
sums are the same in whatever order threads come; what weighs less than half of the last bit is never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from relax_model.sampling import FRACTION_BITS, MASK_BITS

THREADS = 256
MOST_ID_BITS = 18
_EACH = 8  # tokens that a thread has under way at a time
_BITS = 6
BUCKETS = 1 << _BITS
_COPIES = 32  # of the buckets, so that neighbouring threads do not add to the same word
BINS = 3 * BUCKETS * _COPIES
HELD = 1024
# A weight has two parts, so that each part's sum fits in 32 bits: every device adds atomically to those.
_UPPER, _LOWER = 18, 19
_NUMBER_PART, _UPPER_PART, _LOWER_PART = (part * BUCKETS * _COPIES for part in range(3))
_MAGNITUDE = 0x7FFFFFFF  # of a float32's bits
INFINITE = 0x7F800000
_UNROLL = {"pragma_unroll_explicit": False}


def key(logit: Any) -> Any:
    """int32 in the order of float32, and the same for both zeros."""
    bits = T.reinterpret("int32", logit)
    sign = T.shift_right(bits, T.int32(31))
    return T.bitwise_xor(T.bitwise_and(bits, T.int32(_MAGNITUDE)), sign) - sign


def no_number(logit: Any) -> Any:
    """Whether it is a NaN; GLSL's own test may be optimised away."""
    return T.bitwise_and(T.reinterpret("int32", logit), T.int32(_MAGNITUDE)) > INFINITE


def masked(logit: Any, token: Any, word: Any) -> Any:
    """The logit, or −∞ where the mask's word does not have the token. What is not finite stays: it is an error."""
    forbidden = T.bitwise_and(T.shift_right(word, token % MASK_BITS), 1) == 0
    finite = T.bitwise_and(T.reinterpret("int32", logit), T.int32(_MAGNITUDE)) < INFINITE
    return T.Select(T.And(forbidden, finite), T.float32("-inf"), logit)


def rank(token: Any, key: Any, id_bits: int) -> Any:
    """int64, the larger the earlier the token comes."""
    return T.shift_left(T.Cast("int64", key), T.int64(id_bits)) + T.Cast("int64", (1 << id_bits) - 1 - token)


@dataclass(frozen=True)
class Row:
    """What a block knows of its row, as one-element buffers, and expressions on one of its tokens."""

    vocabulary: int
    id_bits: int
    logits: Any  # float32 (rows, vocabulary)
    index: Any
    mask: Any  # int32: the word of the mask that has a token, as a function of it; None: all tokens are allowed
    peak: Any  # float32: the largest logit
    temperature: Any  # float32
    top: Any  # int64: the likeliest token's rank if its id were 0
    limit: Any  # int64: the last place that the filters keep
    held: Any  # int32 (HELD,): ids
    number: Any  # int32: of those held; 0: none is, and the whole row is read

    def logit(self, token: Any) -> Any:
        logit = self.logits[self.index, token]
        return masked(logit, token, self.mask(token)) if self.mask else logit

    def place(self, token: Any, logit: Any) -> Any:
        return self.top[0] - rank(token, key(logit), self.id_bits)

    def weight(self, logit: Any) -> Any:
        return T.exp((logit - self.peak[0]) / self.temperature[0])

    def token(self, first: Any, at: Any) -> Any:
        """Of those held, or else from `first` on; past the end, the last one again."""
        here = T.min(first + at, self.vocabulary - 1)
        return T.if_then_else(self.number[0] > 0, self.held[T.min(at, self.number[0] - 1)], here)

    def amount(self, whole: Any) -> Any:
        """How many tokens to visit, where they are `whole` unless some are held."""
        return T.if_then_else(self.number[0] > 0, self.number[0], whole)


@dataclass(frozen=True)
class Buckets:
    """Shared memory of a search: each bucket's sums, and the words in which they are added up."""

    bins: Any  # uint32 (BINS,)
    numbers: Any  # int64 (BUCKETS,): tokens
    weights: Any  # int64 (BUCKETS,)
    taken: Any  # uint32 (1,): how many tokens are held so far


def _share(total: Any, fraction: Any) -> Any:
    """total · fraction, rounded down, for a total below 2^62 and a fraction in units of 2^-31."""
    part, bits = T.Cast("int64", fraction), T.int64(FRACTION_BITS)
    lower = T.bitwise_and(total, T.int64((1 << FRACTION_BITS) - 1))
    return T.shift_right(total, bits) * part + T.shift_right(lower * part, bits)


def _add(words: Any, index: Any, amount: Any) -> Any:
    """Add to a word to which other threads add as well, and what it was before. TVM sees no access here that it would
    separate from the next one by a barrier. Its own operator is unknown to its code generator for CUDA."""
    return T.call_extern("uint32", "atomicAdd", T.address_of(words[index]), amount)


@T.inline
def _clear(t, bins):
    """Statement: empty buckets."""
    T.evaluate(T.tvm_storage_sync("shared"))
    for part in T.serial(BINS // THREADS):
        bins[part * THREADS + t] = T.uint32(0)
    T.evaluate(T.tvm_storage_sync("shared"))


@T.inline
def _put(t, bins, bucket, weight):
    """Statement: a token of this weight, at most 1, into a bucket."""
    scaled = T.alloc_buffer((1,), "float32", scope="local")
    upper = T.alloc_buffer((1,), "uint32", scope="local")
    at = T.alloc_buffer((1,), "int32", scope="local")
    at[0] = bucket * _COPIES + t % _COPIES
    scaled[0] = weight * T.float32(1 << _UPPER)
    upper[0] = T.Cast("uint32", scaled[0])
    scaled[0] = (scaled[0] - T.Cast("float32", upper[0])) * T.float32(1 << _LOWER) + T.float32(0.5)
    T.evaluate(_add(bins, _NUMBER_PART + at[0], T.uint32(1)))
    T.evaluate(_add(bins, _UPPER_PART + at[0], upper[0]))
    T.evaluate(_add(bins, _LOWER_PART + at[0], T.Cast("uint32", scaled[0])))


@T.inline
def _add_up(t, buckets):
    """Statement: each bucket's number and weight, for all threads to see."""
    sums = T.alloc_buffer((3,), "int64", scope="local")
    T.evaluate(T.tvm_storage_sync("shared"))
    if t < BUCKETS:
        for part in T.unroll(3):
            sums[part] = T.int64(0)
            for copy in T.serial(_COPIES):
                # Each thread begins with another copy, and so in another bank of the memory.
                sums[part] = sums[part] + T.Cast(
                    "int64", buckets.bins[part * BUCKETS * _COPIES + t * _COPIES + (copy + t) % _COPIES]
                )
        buckets.numbers[t] = sums[0]
        buckets.weights[t] = T.shift_left(sums[1], T.int64(_LOWER)) + sums[2]
    T.evaluate(T.tvm_storage_sync("shared"))


@T.inline
def _sum(measures, total):
    """Statement: total[0] becomes the sum of all buckets."""
    total[0] = T.int64(0)
    for b in T.serial(BUCKETS):
        total[0] = total[0] + measures[b]


@T.inline
def _reach(measures, numbers, goal, before, bucket):
    """Statement: bucket[0] becomes the one in which the running sum of measures reaches the goal, or else the last.

    What comes before it is taken off the goal, and its number of tokens is added to `before`.
    """
    here = T.alloc_buffer((2,), "int64", scope="local")
    bucket[0] = -1
    for b in T.serial(BUCKETS):
        here[0] = measures[b]
        here[1] = numbers[b]
        if bucket[0] < 0:
            if T.Or(here[0] >= goal[0], b == BUCKETS - 1):
                bucket[0] = b
            else:
                goal[0] = goal[0] - here[0]
                before[0] = before[0] + here[1]


@T.inline
def _fetch(t, e, row, token, tokens, values):
    """Statement: a thread's next tokens, token(i) for those numbers i that are its own, and their logits."""
    for j in T.unroll(_EACH, annotations=_UNROLL):
        tokens[j] = token((e * _EACH + j) * THREADS + t)
    for j in T.unroll(_EACH, annotations=_UNROLL):
        values[j] = row.logit(tokens[j])


@T.inline
def _tally(t, row, first, whole, by_id, shift, prefix, buckets):
    """Statement: number and weight of each bucket, of the tokens within the limit whose order, by id or else by place,
    begins with the prefix; a bucket is its next bits, those from `shift` on. All int64."""
    tokens = T.alloc_buffer((_EACH,), "int32", scope="local")
    values = T.alloc_buffer((_EACH,), "float32", scope="local")
    place = T.alloc_buffer((1,), "int64", scope="local")
    order = T.alloc_buffer((1,), "int64", scope="local")
    _clear(t, buckets.bins)
    for e in T.serial((row.amount(whole) + _EACH * THREADS - 1) // (_EACH * THREADS)):
        _fetch(t, e, row, lambda i: row.token(first, i), tokens, values)
        for j in T.unroll(_EACH, annotations=_UNROLL):
            place[0] = row.place(tokens[j], values[j])
            order[0] = T.Cast("int64", tokens[j]) if by_id else place[0]
            inside = T.meta_var(T.And((e * _EACH + j) * THREADS + t < row.amount(whole), place[0] <= row.limit[0]))
            if T.And(inside, T.shift_right(order[0], shift + T.int64(_BITS)) == prefix):
                bucket = T.meta_var(T.bitwise_and(T.Cast("int32", T.shift_right(order[0], shift)), BUCKETS - 1))
                _put(t, buckets.bins, bucket, row.weight(values[j]))
    _add_up(t, buckets)


@T.inline
def _hold(t, row, taken, amount):
    """Statement: hold the tokens within the limit, of which there are `amount`."""
    tokens = T.alloc_buffer((_EACH,), "int32", scope="local")
    values = T.alloc_buffer((_EACH,), "float32", scope="local")
    at = T.alloc_buffer((1,), "uint32", scope="local")
    if t == 0:
        taken[0] = T.uint32(0)
    T.evaluate(T.tvm_storage_sync("shared"))
    for e in T.serial(-(-row.vocabulary // (_EACH * THREADS))):
        _fetch(t, e, row, lambda i: T.min(i, row.vocabulary - 1), tokens, values)
        for j in T.unroll(_EACH, annotations=_UNROLL):
            if T.And((e * _EACH + j) * THREADS + t < row.vocabulary, row.place(tokens[j], values[j]) <= row.limit[0]):
                at[0] = _add(taken, 0, T.uint32(1))
                row.held[T.Cast("int32", at[0])] = tokens[j]
    T.evaluate(T.tvm_storage_sync("shared"))
    row.number[0] = amount


@T.inline
def cut(t, row, by_number, amount, buckets):
    """Statement: lower the limit to the first place at which the running sum reaches `amount`, a number of tokens or a
    share of the weight within the limit; where it reaches it nowhere, the limit stays."""
    shift = T.alloc_buffer((1,), "int64", scope="local")
    prefix = T.alloc_buffer((1,), "int64", scope="local")
    goal = T.alloc_buffer((1,), "int64", scope="local")
    before = T.alloc_buffer((1,), "int64", scope="local")
    inside = T.alloc_buffer((1,), "int64", scope="local")
    bucket = T.alloc_buffer((1,), "int32", scope="local")
    shift[0] = T.int64(0)
    while T.shift_right(row.limit[0], shift[0]) >= T.int64(BUCKETS):
        shift[0] = shift[0] + T.int64(_BITS)
    prefix[0] = T.int64(0)
    before[0] = T.int64(0)
    goal[0] = T.Cast("int64", amount) if by_number else T.int64(0)
    while shift[0] >= T.int64(0):
        _tally(t, row, 0, row.vocabulary, False, shift[0], prefix[0], buckets)
        if goal[0] == T.int64(0):
            _sum(buckets.weights, goal)
            goal[0] = T.max(_share(goal[0], amount), T.int64(1))
        _reach(buckets.numbers if by_number else buckets.weights, buckets.numbers, goal, before, bucket)
        inside[0] = buckets.numbers[bucket[0]]
        prefix[0] = prefix[0] * T.int64(BUCKETS) + T.Cast("int64", bucket[0])
        row.limit[0] = T.min(row.limit[0], T.shift_left(prefix[0] + T.int64(1), shift[0]) - T.int64(1))
        shift[0] = shift[0] - T.int64(_BITS)
        if T.Or(inside[0] <= T.int64(1), T.And(by_number, inside[0] == goal[0])):
            shift[0] = T.int64(-1)
        if T.And(row.number[0] == 0, before[0] + inside[0] <= T.int64(HELD)):
            _hold(t, row, buckets.taken, T.Cast("int32", before[0] + inside[0]))


@T.inline
def draw(t, row, share, token, buckets):
    """Statement: token[0] becomes the one at which the running sum of weights within the limit, in the order of ids,
    passes this share of them all."""
    goal = T.alloc_buffer((1,), "int64", scope="local")
    before = T.alloc_buffer((1,), "int64", scope="local")
    bucket = T.alloc_buffer((1,), "int32", scope="local")
    shift = T.alloc_buffer((1,), "int32", scope="local")
    token[0] = 0
    before[0] = T.int64(0)
    goal[0] = T.int64(0)
    shift[0] = -(-max(row.id_bits, 1) // _BITS) * _BITS
    while shift[0] > 0:
        # Of the row only what has the prefix is read: 2^shift tokens.
        _tally(
            t,
            row,
            T.shift_left(token[0], shift[0]),
            T.min(T.shift_left(1, shift[0]), row.vocabulary - T.shift_left(token[0], shift[0])),
            True,
            T.Cast("int64", shift[0] - _BITS),
            T.Cast("int64", token[0]),
            buckets,
        )
        if goal[0] == T.int64(0):
            _sum(buckets.weights, goal)
            goal[0] = _share(goal[0], share) + T.int64(1)
        _reach(buckets.weights, buckets.numbers, goal, before, bucket)
        token[0] = token[0] * BUCKETS + bucket[0]
        shift[0] = shift[0] - _BITS
