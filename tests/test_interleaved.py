"""Timing of several ways in turns."""

from pycls_std.core.interleaved import interleaved, report


def test_ways_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    seconds = interleaved(
        {"old": lambda: calls.append("old"), "new": lambda: calls.append("new")},
        rounds=2,
        warmup=1,
        wait=lambda: calls.append("wait"),
    )
    assert calls == ["wait", "old", "wait", "wait", "new", "wait"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"old": 2, "new": 2}
    assert min(seconds["old"]) >= 0


def test_ratios_are_of_the_same_round():
    """Medians 2 s and 1 s; the rounds have the ratios 1, 2 and 8."""
    first, second = report({"old": [1.0, 2.0, 8.0], "new": [1.0, 1.0, 1.0]}, amount=10, unit="images")
    assert first.split() == ["old", "2000.00", "ms", "5.0", "images/s"]
    assert second.split() == ["new", "1000.00", "ms", "10.0", "images/s", "2.00x", "(1.00", "to", "8.00)"]
