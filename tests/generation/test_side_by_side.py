"""Several pieces of work at a time: order, threads, errors, and what is held meanwhile."""

import threading

import pytest
import torch

from hf_rnn_seq2seq.generation.side_by_side import MOST, side_by_side


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_keep_the_order_and_the_threads_are_shared_out() -> None:
    together = threading.Barrier(3, timeout=60)  # passed only where three pieces run at a time

    def work(number: int) -> tuple[int, int]:
        together.wait()
        return number, torch.get_num_threads()

    assert list(side_by_side(work, range(9))) == [(number, 1) for number in range(9)]
    assert torch.get_num_threads() == 3


def test_more_threads_than_pieces_go_to_the_pieces() -> None:
    torch.set_num_threads(4)
    assert list(side_by_side(lambda _: torch.get_num_threads(), range(2))) == [2, 2]
    assert list(side_by_side(lambda _: torch.get_num_threads(), range(1))) == [4]
    torch.set_num_threads(4 * MOST)
    assert list(side_by_side(lambda _: torch.get_num_threads(), range(20))) == [4] * 20
    assert torch.get_num_threads() == 4 * MOST


def test_a_second_caller_works_one_by_one() -> None:
    first = side_by_side(lambda _: torch.get_num_threads(), range(20))
    assert next(first) == 1
    assert list(side_by_side(lambda _: threading.current_thread().name, range(2))) == [threading.main_thread().name] * 2
    first.close()
    assert torch.get_num_threads() == 3
    assert list(side_by_side(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]


def test_no_more_is_begun_than_is_asked_for() -> None:
    begun: list[int] = []
    results = side_by_side(lambda number: begun.append(number) or number, range(100))
    assert next(results) == 0
    assert max(begun) <= 4
    results.close()
    assert torch.get_num_threads() == 3


def test_an_error_is_raised_in_its_place() -> None:
    def work(number: int) -> int:
        if number == 4:
            raise ValueError("number 4")
        return number

    results = side_by_side(work, range(50))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="number 4"):
        next(results)
    assert torch.get_num_threads() == 3
