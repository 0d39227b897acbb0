"""Memory that was freed and that the C library keeps.

A training step takes and frees tensors of tens of MiB whose sizes change with every batch. glibc keeps what was freed
in its heap, in pieces that the next sizes do not fit: a gigabyte in a hundred updates.
"""

import ctypes
import os
import sys

KEPT_MB = 288  # by so much a process may grow before free pages are given back; less costs more of them anew


class Heap:
    """Gives the heap's free pages back to the system when the process has grown; does nothing without glibc."""

    def __init__(self, kept_mb: int = KEPT_MB) -> None:
        self.kept_mb = kept_mb
        self._least: float | None = None
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None

    def give_back(self) -> bool:
        """Asks how much is resident, in microseconds; giving back takes some 20 ms.

        Returns:
            Whether pages were given back: the process had grown by more than `kept_mb` MiB since it last did.
        """
        if self._trim is None:
            return False
        if self._least is not None and _resident_mb() <= self._least + self.kept_mb:
            return False
        self._trim(0)
        self._least = _resident_mb()
        return True


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


__all__ = ["Heap"]
