"""What was shown and not taken: each rule by a case, and all of them by loops."""

import numpy as np
import polars as pl
import pytest

from tfrec_attn.data import impressions

WINDOW, UNTIL = 10, 100


def frame(rows, *names):
    types = {"time": pl.Int64, "before": pl.Int64}
    schema = {name: types.get(name, pl.String) for name in names}
    return pl.DataFrame(rows, schema, orient="row")


shown = lambda *rows: frame(rows, "user", "item", "time")
events = lambda *rows: frame(rows, "user", "item", "time")
told = lambda *rows: frame(rows, "user", "item", "label", "time", "before")


@pytest.mark.parametrize(
    ("times", "happened", "found"),
    [
        ([20], [], [(20, 30, "ignored")]),
        # An event of the same moment, within the window, at its end, and behind it.
        ([20], [20], [(20, 30, "taken")]),
        ([20], [25], [(20, 30, "taken")]),
        ([20], [30], [(20, 30, "taken")]),
        ([20], [31], [(20, 30, "ignored")]),
        # What came before the impression took nothing.
        ([20], [19], [(20, 30, "ignored")]),
        # The window must be over by the time until which events are known.
        ([90], [], [(90, 100, "ignored")]),
        ([91], [], [(91, 101, "open")]),
        ([91], [95], [(91, 101, "taken")]),
        # Less than a window apart is one showing, and one event takes it.
        ([20, 29, 38], [], [(20, 48, "ignored")]),
        ([20, 29, 38], [47], [(20, 48, "taken")]),
        ([20, 30], [], [(20, 30, "ignored"), (30, 40, "ignored")]),
        ([20, 20], [], [(20, 30, "ignored")]),
        ([20, 30], [35], [(20, 30, "ignored"), (30, 40, "taken")]),
    ],
)
def test_an_outcome(times, happened, found):
    seen = impressions.showings(
        shown(*(("u", "a", time) for time in times)),
        events(*(("u", "a", time) for time in happened)),
        WINDOW,
        UNTIL,
    )
    assert seen.select("time", "settled", "outcome").rows() == found


def test_an_event_of_another_user_or_item_takes_nothing():
    seen = impressions.showings(
        shown(("u", "a", 20)), events(("u", "b", 21), ("v", "a", 21)), WINDOW, UNTIL
    )
    assert seen["outcome"].to_list() == ["ignored"]


def by_loops(seen, happened):
    """(user, item, first time, outcome) of each showing."""
    found = set()
    for pair in {row[:2] for row in seen}:
        times = sorted({row[2] for row in seen if row[:2] == pair})
        runs = [[times[0]]]
        for time in times[1:]:
            if time - runs[-1][-1] < WINDOW:
                runs[-1].append(time)
            else:
                runs.append([time])
        for run in runs:
            taken = any(
                row[:2] == pair and time <= row[2] <= time + WINDOW
                for row in happened
                for time in run
            )
            late = run[-1] + WINDOW > UNTIL
            outcome = "taken" if taken else "open" if late else "ignored"
            found.add((*pair, run[0], outcome))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_agree_with_loops(seed):
    draw = np.random.default_rng(seed)
    rows = lambda count: [
        (f"u{draw.integers(3)}", f"i{draw.integers(4)}", int(draw.integers(110)))
        for _ in range(count)
    ]
    seen, happened = rows(97), rows(31)
    found = impressions.showings(shown(*seen), events(*happened), WINDOW, UNTIL)
    rows_found = found.select("user", "item", "time", "outcome").rows()
    assert len(rows_found) == len(set(rows_found))
    assert set(rows_found) == by_loops(seen, happened)


def test_events_that_were_told_are_added_once_and_only_where_new():
    known = events(("u", "a", 5), ("u", "b", 6))
    found = impressions.events_told(
        told(
            ("u", "a", "buy", 5, 50),  # known
            ("u", "a", "buy", 7, 50),  # of another time: another event
            ("u", "b", "like", None, 51),  # without a time, and one of it is known
            ("u", "c", "like", None, 62),
            ("u", "c", "like", None, 52),  # told first
            ("u", "d", "like", None, 40),  # below it has a time
            ("u", "d", "dislike", 8, 63),
            ("u", "d", "dislike", 8, 64),
            ("v", "b", "like", None, 53),
        ),
        known,
    )
    assert found.rows() == [
        ("u", "a", "buy", 7),
        ("u", "d", "dislike", 8),
        ("u", "c", "like", 52),
        ("v", "b", "like", 53),
    ]
