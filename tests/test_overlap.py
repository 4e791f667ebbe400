"""Reading ahead and writing behind: order, bounds, errors, nothing lost."""

from __future__ import annotations

import threading

import pytest

from pixelsem.engine.overlap import Ahead, Behind


def test_ahead_keeps_the_order_and_its_depth() -> None:
    begun: list[int] = []
    taken = 0
    with Ahead(3) as reader:
        for item, result in reader.map(lambda n: begun.append(n) or 10 * n, range(20)):  # type: ignore[func-returns-value]
            assert (item, result()) == (taken, 10 * taken)
            taken += 1
            assert len(begun) <= taken + 4
    assert taken == 20


def test_ahead_raises_where_the_result_is_asked_for() -> None:
    with Ahead(2) as reader:
        results = dict(reader.map(lambda n: 1 // n, [2, 0, 1]))
        assert (results[2](), results[1]()) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            results[0]()


def test_behind_works_while_the_caller_goes_on_and_in_order() -> None:
    release, done = threading.Event(), list[int]()
    with Behind(8) as writer:
        writer.submit(lambda: release.wait(10) and None)
        for number in range(5):
            writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
        assert done == [], "nothing was waited for"
        release.set()
    assert done == [0, 1, 2, 3, 4]


def test_behind_waits_where_too_much_is_open() -> None:
    done: list[int] = []
    with Behind(2) as writer:
        for number in range(50):
            writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
            assert number + 1 - len(done) <= 3


def test_behind_finishes_what_was_submitted_when_the_block_fails() -> None:
    done: list[int] = []

    def interrupted() -> None:
        with Behind(100) as writer:
            for number in range(50):
                writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == list(range(50))


def test_behind_raises_what_failed_and_does_nothing_after_it() -> None:
    release, done = threading.Event(), list[str]()

    def fail() -> None:
        release.wait(10)
        raise OSError("disk full")

    def fill() -> None:
        with Behind(10) as writer:
            writer.submit(lambda: done.append("before"))
            writer.submit(fail)
            writer.submit(lambda: done.append("after"))
            release.set()

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert done == ["before"]
