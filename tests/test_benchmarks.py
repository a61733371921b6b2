"""Benchmarks run, in small; nothing is timed here."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def benchmark(name, *words):
    """Run a benchmark; returns its output."""
    command = [sys.executable, str(ROOT / "tools" / "benchmarks" / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tables():
    text = benchmark("tables", "--runs", "2", "--epochs", "3", "--tags", "2", "--rounds", "1")
    assert "2 runs, 3 epochs, 2 tags" in text


def test_startup():
    text = benchmark("startup", "--rounds", "1", "--warmup", "0")
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "python -c pass",
        "--help",
        "a mistake",
        "first step",
    ]
    assert text.count("s 0.5 s") == 2  # meets or misses
