"""How several workers decide to end: when they ask each other, and what is asked."""

import itertools

import numpy as np
import pytest

from tfrec_attn.training import agreement, distribution
from tfrec_attn.training.agreement import Ending
from tfrec_attn.training.preemption import Preemption


@pytest.fixture
def asked(monkeypatch):
    """Makes this process one of two workers, whose steps take `seconds`.

    Gives what it has told, a line a question; the other tells `other`.
    """

    def start(*, chief, seconds, other=(0, 0)):
        told, clock = [], itertools.count()
        monkeypatch.setattr(distribution, "alone", lambda strategy: False)
        monkeypatch.setattr(distribution, "is_chief", lambda strategy: chief)
        monkeypatch.setattr(agreement.time, "monotonic", lambda: next(clock) * seconds)

        def summed(strategy, values):
            told.append(values.tolist())
            return values + np.array(other)

        monkeypatch.setattr(distribution, "summed", summed)
        return told

    return start


def ends(steps):
    """Of a worker that nobody asks, after each of so many steps."""
    ending = Ending(None, Preemption())
    return [ending.after_step() for _ in range(steps)]


def test_the_other_s_signal_ends_this_one_when_both_are_asked(asked):
    """The chief has said: every third step, after the first."""
    told = asked(chief=False, seconds=1.0, other=(1, 3))
    assert ends(7) == [True, False, False, True, False, False, True]
    assert told == [[0, 0]] * 3


def test_the_chief_plans_a_question_a_second(asked):
    """The clock goes on by a quarter as it is read: before a question, and after it."""
    told = asked(chief=True, seconds=0.25)
    assert not any(ends(13))
    # Of 1 step in a quarter; of 4 in a quarter.
    assert told == [[0, 4], [0, 16]]


@pytest.mark.parametrize(("seconds", "plan"), [(60.0, 1), (0.0, 1000)])
def test_slow_steps_are_asked_about_each_and_fast_ones_not_never(asked, seconds, plan):
    told = asked(chief=True, seconds=seconds)
    ends(1)
    assert told == [[0, plan]]


@pytest.mark.parametrize("chief", [True, False])
def test_its_own_signal_is_told(asked, chief):
    told, preemption = asked(chief=chief, seconds=1.0), Preemption()
    preemption.asked = True
    assert Ending(None, preemption).now()
    assert told[0][0] == 1


def test_one_process_looks_at_its_own_after_each_step(monkeypatch):
    monkeypatch.setattr(distribution, "summed", None)
    preemption = Preemption()
    ending = Ending(distribution.strategy("one"), preemption)
    found = [ending.after_step(), ending.now()]
    preemption.asked = True
    assert [*found, ending.after_step(), ending.now()] == [False, False, True, True]
