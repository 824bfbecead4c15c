"""Who runs in the next step, and with which rows: continuous batching with chunked prefill over a pool of pages.

Requests wait in order of arrival; the running ones each add one row (decoding) or a chunk of their prompt. When pages
run out, the youngest gives its pages up and computes them again later: reserving for the worst case instead would leave
most of the cache idle, since `max_tokens` is usually far above what is generated, and rows do not depend on what runs
beside them, so the text does not show it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.page_store import PageStore
from mlc_dsv3.runtime.pages import PagePool
from mlc_dsv3.runtime.prefix import Match, PrefixCache, common_prefix
from mlc_dsv3.runtime.saved_prefixes import SEGMENT, PageContent, SavedPrefixes
from mlc_dsv3.runtime.sequence import Sequence

# Bytes of saved prefixes that are read between two steps, so that others go on decoding: some 20 ms.
_MOST_LOADED = 16 << 20


@dataclass(frozen=True)
class Work:
    """Positions [start, stop) of a sequence, to be computed in one step, and `drafts` behind them to be verified; its
    pages reach that far."""

    sequence: Sequence
    start: int
    stop: int
    drafts: tuple[int, ...] = ()
    forced: bool = False  # the grammar allows no tokens but the drafts

    @property
    def rows(self) -> int:
        """Of the step."""
        return self.stop - self.start + len(self.drafts)

    @property
    def complete(self) -> bool:
        """Whether the sequence's last token is computed, so that the next one can be chosen."""
        return self.stop == len(self.sequence.tokens)


@dataclass(frozen=True)
class Plan:
    """One step: works of different sequences, or one whole block in the expanded form."""

    works: tuple[Work, ...]
    expanded: bool


class Scheduler:
    """Owns the pages and says what each step computes; the caller computes it and reports back by `advance`."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        forms: AttentionForms,
        *,
        max_rows: int,
        max_batch: int,
        exact_rows: int | None = None,
    ) -> None:
        """`exact_rows`: up to so many rows of a step have the same bits whatever runs beside them (None: all)."""
        assert 1 <= max_batch <= max_rows, (max_batch, max_rows)
        self.pool = PagePool(num_pages)
        self.prefix = PrefixCache(self.pool, forms, page_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first
        self.preemptions = 0
        self.saved: SavedPrefixes | None = None
        self._forms, self._page_size = forms, page_size
        self._max_rows, self._max_batch = max_rows, max_batch
        self._exact_rows = exact_rows or max_rows
        self._last_was_expanded = False
        self._borrowed = 0  # pages
        self._refused: tuple[Sequence, int] | None = None  # the head that did not fit, and the cache's changes then

    def save_to(self, store: PageStore, content: PageContent) -> None:
        """Save prefixes that are evicted, and load them again; `content` is what the pages hold."""
        self.saved = SavedPrefixes(store, content, self.prefix, self._forms, self._page_size)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Forget a sequence that is finished or cancelled; `keep` what it computed in the prefix cache."""
        if sequence in self.running:
            self.running.remove(sequence)
            if keep:
                self._release(sequence)
            else:
                self.prefix.release(sequence.release())
        else:
            self.waiting.remove(sequence)

    def plan(self) -> Plan | None:
        """The next step; None where nothing waits or runs, or only for pages that are borrowed. Every plan makes
        progress."""
        self._admit()
        self._load_saved()
        if not self.running:
            return None
        # Blocks run alone, so they take turns with the rows of the others.
        order = (self._mixed, self._expanded) if self._last_was_expanded else (self._expanded, self._mixed)
        plan = order[0]() or order[1]()
        if plan is None:
            assert self._borrowed, "no running sequence could be given a row"
            return None
        self._last_was_expanded = plan.expanded
        return plan

    def advance(self, work: Work) -> None:
        """Note that `work` is computed; a prompt's full pages can be shared from its end on."""
        sequence = work.sequence
        sequence.computed = work.stop
        if work.start < sequence.prompt_length <= work.stop:
            prompt = sequence.tokens[: sequence.prompt_length]
            self.prefix.insert(prompt, sequence.pages, sequence.prompt_length, partial=False)

    def borrow(self, count: int) -> list[int]:
        """`count` pages for work outside the schedule, until `give_back`; running sequences give theirs up if need
        be."""
        pages: list[int] = []
        while len(pages) < count:
            page = self._take_page()
            if page is not None:
                pages.append(page)
            elif self.running:
                self._preempt()
            else:
                self.pool.release(pages)
                raise RuntimeError(f"{count} pages are wanted of a cache of {self.pool.num_pages}")
        self._borrowed += count
        return pages

    def give_back(self, pages: list[int]) -> None:
        """End a loan: what waits may fit now."""
        self._borrowed -= len(pages)
        self.prefix.release(pages)

    def _admit(self) -> None:
        """Start waiting sequences while the rows of the next step are not all spoken for and their pages are there.

        A prompt waits for a running one that is reading the same beginning, to find it in the cache.
        """
        while self.waiting and len(self.running) < self._max_batch:
            if sum(sequence.remaining for sequence in self.running) >= self._max_rows:
                return
            sequence = self.waiting[0]
            # What running sequences take was promised to them: room comes only from what the cache counts as changes.
            if self._refused == (sequence, self.prefix.changes):
                return
            match, saved = self._cached(sequence)
            if self._is_being_read(sequence, match.length + SEGMENT * len(saved)):
                return
            promised = sum(max(0, self._pages_for(other.tokens) - len(other.pages)) for other in self.running)
            needed = promised + self._pages_for(sequence.tokens) - match.num_pages
            if needed > self.pool.free + self.prefix.evictable() - self.prefix.pinned_by(match):
                assert self.running or self._borrowed, "a sequence alone does not fit in the cache"
                self._refused = (sequence, self.prefix.changes)
                return
            self.waiting.popleft()
            sequence.pages.extend(self.prefix.take(match))
            sequence.computed = match.length
            if not sequence.admitted:
                sequence.admitted, sequence.reused = True, match.length
            sequence.saved.extend(saved)
            self.running.append(sequence)

    def _cached(self, sequence: Sequence) -> tuple[Match, tuple[str, ...]]:
        """The pages in memory that a sequence begins with, and the names of the segments on disk that follow them."""
        match = self.prefix.find(sequence.tokens, sequence.prompt_length)
        if self.saved is None or sequence.admitted:
            return match, ()
        run = self.saved.beyond(sequence.tokens, sequence.prompt_length, match.length)
        if run is None:
            return match, ()
        return Match(run.start, match.full[: run.start // self._page_size], None), run.names

    def _is_being_read(self, sequence: Sequence, cached: int) -> bool:
        """Whether a running prompt will soon be in the cache, and more of it than `cached` is of use to `sequence`."""
        for other in self.running:
            if other.computed < other.prompt_length:
                limit = min(other.prompt_length, len(sequence.tokens) - 1)
                shared = common_prefix(other.tokens[:limit], sequence.tokens) // self._page_size * self._page_size
                if self._forms.reusable(shared, sequence.prompt_length) > cached:
                    return True
        return False

    def _load_saved(self) -> None:
        """Load segments of sequences that have some on disk, up to a limit where others have rows to compute."""
        loaded = 0
        for sequence in tuple(self.running):
            while sequence.saved and sequence in self.running:
                others = any(not other.saved for other in self.running)
                if others and loaded >= _MOST_LOADED:
                    return
                loaded += self._load_segment(sequence)

    def _load_segment(self, sequence: Sequence) -> int:
        """Load a sequence's next segment; returns its bytes. Where it is gone, the rest is computed."""
        assert self.saved is not None
        stop = sequence.computed + SEGMENT
        if not self._grow(sequence, stop):
            return 0
        pages = sequence.pages[sequence.computed // self._page_size : stop // self._page_size]
        if not self.saved.load(sequence.saved.popleft(), pages):
            sequence.saved.clear()
            # A block that is there in part is computed from its beginning.
            kept = self._forms.reusable(sequence.computed, sequence.prompt_length)
            sequence.computed = sequence.reused = kept
            return 0
        sequence.computed = sequence.reused = stop
        return self.saved.segment_bytes

    def _mixed(self) -> Plan | None:
        """A row for every decoding sequence, and chunks of prompts, the oldest first, in the rows that are left."""
        works = []
        decoded = sum(sequence.remaining == 1 for sequence in self.running)
        spare_rows, draft_rows = self._max_rows - decoded, self.rows_for_drafts(decoded)
        for sequence in tuple(self.running):
            if sequence not in self.running:  # preempted for an older one
                continue
            if sequence.saved:
                continue
            decoding = sequence.remaining == 1
            stop, expanded = self._next_chunk(sequence, 1 if decoding else spare_rows)
            if expanded or stop == sequence.computed or not self._grow(sequence, stop):
                continue
            drafts = tuple(sequence.drafts[: min(draft_rows, spare_rows)])
            work = Work(sequence, sequence.computed, stop, drafts, sequence.forced)
            works.append(work)
            spare_rows -= work.rows - decoding
            draft_rows -= len(drafts)
        return Plan(tuple(works), expanded=False) if works else None

    def rows_for_drafts(self, decoded: int) -> int:
        """Rows for drafts beside so many decoded ones, which get the bits that they would have had without."""
        bound = self._exact_rows if decoded <= self._exact_rows else self._max_rows
        return bound - decoded

    def reserve(self, sequence: Sequence, stop: int) -> int:
        """Give a running sequence pages for drafts up to `stop` where nobody has to give any up; returns how many
        positions its pages have."""
        while sequence in self.running and len(sequence.pages) * self._page_size < stop:
            page = self._take_page()
            if page is None:
                break
            sequence.pages.append(page)
        return len(sequence.pages) * self._page_size

    def _expanded(self) -> Plan | None:
        """The next block of the oldest sequence that has one to run in the expanded form."""
        for sequence in self.running:
            stop, expanded = self._next_chunk(sequence, self._max_rows)
            if expanded and not sequence.saved:
                grown = self._grow(sequence, stop)
                return Plan((Work(sequence, sequence.computed, stop),), expanded=True) if grown else None
        return None

    def _next_chunk(self, sequence: Sequence, rows: int) -> tuple[int, bool]:
        return self._forms.next_chunk(sequence.computed, len(sequence.tokens), sequence.prompt_length, rows)

    def _grow(self, sequence: Sequence, stop: int) -> bool:
        """Give a sequence pages up to `stop`; False where it was itself the youngest and had to give up."""
        while len(sequence.pages) * self._page_size < stop:
            page = self._take_page()
            if page is not None:
                sequence.pages.append(page)
            elif self._preempt() is sequence:
                return False
        return True

    def _take_page(self) -> int | None:
        if not self.pool.free:
            self.prefix.evict()
        return self.pool.allocate()

    def _preempt(self) -> Sequence:
        """Send the youngest running sequence back to the head of the queue."""
        victim = self.running.pop()
        self._release(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1
        return victim

    def _release(self, sequence: Sequence) -> None:
        tokens = sequence.tokens[: sequence.computed]
        self.prefix.insert(tokens, sequence.pages, sequence.prompt_length, partial=True)
        self.prefix.release(sequence.release())

    def _pages_for(self, tokens: object) -> int:
        return -(-len(tokens) // self._page_size)
