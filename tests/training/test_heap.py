"""Free memory goes back to the system when a process has grown."""

import subprocess
import sys

import pytest

from hf_rnn_seq2seq.training import heap

pytestmark = pytest.mark.long
GROW = """
import torch
from hf_rnn_seq2seq.training.heap import Heap, _resident_mb
keeper = Heap(kept_mb=50)
assert keeper.give_back() and not keeper.give_back()
before = _resident_mb()
# Freed blocks with held ones between them: the heap cannot shrink from its end.
blocks = [torch.ones(30_000) for _ in range(2000)]
held = blocks[::2]
del blocks
grown = _resident_mb()
assert keeper.give_back()
print(before, grown, _resident_mb())
"""


@pytest.mark.skipif(heap.Heap()._trim is None, reason="the C library is not glibc")
def test_free_pages_inside_the_heap_are_given_back():
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, grown, after = map(float, done.stdout.split())
    assert grown - before > 200
    assert after - before < 0.7 * (grown - before)


def test_nothing_is_asked_where_there_is_no_glibc(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    monkeypatch.setattr(heap, "_resident_mb", lambda: pytest.fail("asked"))
    assert not heap.Heap().give_back()
