"""Ctrl-C between two steps ends the work at once, inside a step behind it."""

from __future__ import annotations

import signal

import pytest

from scanner.run.interruption import interruptible


def test_between_steps_an_interrupt_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)


def test_a_step_is_run_to_its_end_first() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
        with interruption.step():
            signal.raise_signal(signal.SIGINT)
            done.append("counted")
            done.append("reported")
        done.append("the next step")
    assert done == ["counted", "reported"]


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption, interruption.step():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the step went on")


def test_the_handler_of_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
