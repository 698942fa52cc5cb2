# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar on a terminal, elsewhere a plain line a minute."""

import io
import re
import sys
import time

import pytest

from ray_embed.core import console
from ray_embed.core.console import Progress, say


class Screen(io.StringIO):
    """A stderr that says it is a terminal, or that it is none."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes only when it is told to."""
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


def test_without_a_terminal_there_is_a_plain_line_a_minute(screen, clock, capsys):
    stream = screen(terminal=False)
    with Progress(6000) as shown:
        for _ in range(100):
            clock(6)
            shown.advance(60)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    for number, line in enumerate(lines, start=1):
        found = re.search(r"(\d+) of 6000\D.*?(\d+) img/s", line)
        assert found
        assert int(found[1]) == 600 * number
        assert int(found[2]) == 10
    assert "left" in lines[0]
    # Of 6000, 5400 are left, at ten a second.
    assert "09:00 left" in lines[0]
    assert capsys.readouterr().out == ""


def test_of_a_moment_no_speed_is_told(screen, clock):
    screen(terminal=False)
    with Progress(20) as shown:
        clock(60)
        shown.advance(10)
        clock(0.5)
        shown.advance(10)
        assert shown.measured == 0
        clock(9.5)
        shown.advance(10)
        assert shown.measured == 2


def test_the_line_comes_also_while_nothing_is_done(screen, clock):
    stream = screen(terminal=False)
    with Progress(1000) as shown:
        shown.skip(300)
        for number in (1, 2):
            clock(60)
            end = time.time() + 60
            while len(stream.getvalue().splitlines()) < number:
                assert time.time() < end
                time.sleep(0.01)
    assert stream.getvalue().splitlines() == ["300 of 1000 images, 0 img/s"] * 2


def test_a_quick_run_says_nothing_without_a_terminal(screen, clock):
    stream = screen(terminal=False)
    with Progress(10) as shown:
        clock(1)
        shown.advance(10)
    assert stream.getvalue() == ""


def test_length_that_is_not_known_yet(screen, clock):
    stream = screen(terminal=False)
    with Progress(None) as shown:
        for _ in range(4):
            clock(36)
            shown.advance(72)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "144 images" in lines[0]
    assert "2 img/s" in lines[0]
    assert "left" not in lines[0]


def test_terminal_has_a_bar_with_speed_and_time_left(screen, clock):
    stream = screen(terminal=True)
    with Progress(100) as shown:
        for _ in range(5):
            clock(2)
            shown.advance(20)
    drawn = stream.getvalue()
    assert "\r" in drawn
    assert "100/100" in drawn
    assert "img/s" in drawn
    assert "%" in drawn


def test_records_done_before_count_as_done_but_not_as_speed(screen, clock):
    stream = screen(terminal=False)
    with Progress(1000) as shown:
        shown.skip(500)
        for _ in range(3):
            clock(60)
            shown.advance(100)
        rate = shown.rate
    assert rate == pytest.approx(100 / 60)
    assert "600 of 1000" in stream.getvalue().splitlines()[0]


def test_speed_of_nothing_is_zero(screen, clock):
    screen(terminal=False)
    with Progress(10) as shown:
        clock(3)
        shown.skip(10)
        assert shown.rate == 0


def test_bar_counts_what_was_done_before(screen, clock):
    stream = screen(terminal=True)
    with Progress(100) as shown:
        shown.skip(60)
        clock(1)
        shown.advance(40)
    assert "100/100" in stream.getvalue()
    assert "160" not in stream.getvalue()


def test_messages_go_to_stderr(screen, capsys):
    stream = screen(terminal=False)
    say("a message")
    assert stream.getvalue() == "a message\n"
    assert capsys.readouterr().out == ""


def test_bar_is_closed_when_an_error_ends_it(screen, clock):
    stream = screen(terminal=True)
    with pytest.raises(RuntimeError), Progress(100) as shown:
        clock(1)
        shown.advance(10)
        raise RuntimeError
    assert stream.getvalue().endswith("\n")
