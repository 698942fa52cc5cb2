# SPDX-License-Identifier: Apache-2.0
"""Progress is a bar on a terminal, and elsewhere one plain line a minute."""

import io
import re
import sys
import time

import pytest

from ray_embed.core import console
from ray_embed.core.console import Progress, say


class Screen(io.StringIO):
    """A stderr that is a terminal, or is not."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, which advances only when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def screen(monkeypatch):
    def use(terminal):
        stream = Screen(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def test_without_a_terminal_a_line_is_printed_each_minute(screen, clock, capsys):
    stream = screen(terminal=False)
    with Progress(6000) as progress:
        for _ in range(100):
            clock(6)
            progress.advance(60)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    for number, line in enumerate(lines, start=1):
        match = re.search(r"(\d+) of 6000\D.*?(\d+) img/s", line)
        assert match
        assert int(match[1]) == 600 * number
        assert int(match[2]) == 10
    assert "left" in lines[0]
    # Of 6000, 5400 are left, at ten a second.
    assert "09:00 left" in lines[0]
    assert capsys.readouterr().out == ""


def test_rate_over_a_short_time_is_not_reliable(screen, clock):
    screen(terminal=False)
    with Progress(20) as progress:
        clock(60)
        progress.advance(10)
        clock(0.5)
        progress.advance(10)
        assert progress.reliable_rate == 0
        clock(9.5)
        progress.advance(10)
        assert progress.reliable_rate == 2


def test_line_is_printed_while_nothing_advances(screen, clock):
    stream = screen(terminal=False)
    with Progress(1000) as progress:
        progress.skip(300)
        for number in (1, 2):
            clock(60)
            end = time.time() + 60
            while len(stream.getvalue().splitlines()) < number:
                assert time.time() < end
                time.sleep(0.01)
    assert stream.getvalue().splitlines() == ["300 of 1000 images, 0 img/s"] * 2


def test_quick_run_prints_nothing_without_a_terminal(screen, clock):
    stream = screen(terminal=False)
    with Progress(10) as progress:
        clock(1)
        progress.advance(10)
    assert stream.getvalue() == ""


def test_unknown_total(screen, clock):
    stream = screen(terminal=False)
    with Progress(None) as progress:
        for _ in range(4):
            clock(36)
            progress.advance(72)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "144 images" in lines[0]
    assert "2 img/s" in lines[0]
    assert "left" not in lines[0]


def test_terminal_has_a_bar_with_rate_and_time_left(screen, clock):
    stream = screen(terminal=True)
    with Progress(100) as progress:
        for _ in range(5):
            clock(2)
            progress.advance(20)
    drawn = stream.getvalue()
    assert "\r" in drawn
    assert "100/100" in drawn
    assert "img/s" in drawn
    assert "%" in drawn


def test_skipped_records_count_as_done_but_not_in_the_rate(screen, clock):
    stream = screen(terminal=False)
    with Progress(1000) as progress:
        progress.skip(500)
        for _ in range(3):
            clock(60)
            progress.advance(100)
        rate = progress.rate
    assert rate == pytest.approx(100 / 60)
    assert "600 of 1000" in stream.getvalue().splitlines()[0]


def test_rate_without_records_is_zero(screen, clock):
    screen(terminal=False)
    with Progress(10) as progress:
        clock(3)
        progress.skip(10)
        assert progress.rate == 0


def test_bar_counts_skipped_records(screen, clock):
    stream = screen(terminal=True)
    with Progress(100) as progress:
        progress.skip(60)
        clock(1)
        progress.advance(40)
    assert "100/100" in stream.getvalue()
    assert "160" not in stream.getvalue()


def test_messages_go_to_stderr(screen, capsys):
    stream = screen(terminal=False)
    say("a message")
    assert stream.getvalue() == "a message\n"
    assert capsys.readouterr().out == ""


def test_bar_is_closed_after_an_error(screen, clock):
    stream = screen(terminal=True)
    with pytest.raises(RuntimeError), Progress(100) as progress:
        clock(1)
        progress.advance(10)
        raise RuntimeError
    assert stream.getvalue().endswith("\n")


def test_a_line_is_printed_only_if_something_takes_long(capsys):
    with console.say_after(30, "never"):
        pass
    with console.say_after(0.01, "waiting"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "waiting\n"
