"""The pool of physical pages of the latent cache: who holds which is counted here, what they hold is not.

Sequences and the prefix cache are the holders; a page is free when its last holder lets go.
"""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Reference counts and a free list over `num_pages` pages, numbered from 0."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages >= 1, num_pages
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many hold `page`."""
        return self._holders[page]

    def allocate(self) -> int | None:
        """A free page, now held once; None where there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def retain(self, page: int) -> None:
        """One more holder of a page that is held already."""
        if self._holders[page] < 1:
            raise RuntimeError(f"page {page} is free and cannot be shared")
        self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less of each page; those without any become free."""
        for page in pages:
            if self._holders[page] < 1:
                raise RuntimeError(f"page {page} was released twice")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
