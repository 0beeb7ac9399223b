"""When to save and when to stop."""

import signal
import time

import pytest

from kdcli.machine.control import Control, Every, Verdict


@pytest.mark.parametrize(
    ("text", "every"),
    [("200", Every(200, None)), ("30s", Every(None, 30)), ("10m", Every(None, 600)), ("2h", Every(None, 7200))],
)
def test_steps_and_times(text, every):
    assert Every.parse(text) == every


def test_saving_is_due_so_many_steps_after_the_last_time():
    control = Control(Every.parse("3"))
    assert [control.after(step) for step in (1, 2, 3, 4)] == [Verdict.GO_ON] * 2 + [Verdict.SAVE] * 2
    control.saved(4)  # it could not be saved at 3, within a group of accumulated batches
    assert [control.after(step) for step in (5, 6, 7)] == [Verdict.GO_ON] * 2 + [Verdict.SAVE]


def test_a_clock_that_is_set_does_not_matter(monkeypatch):
    """Time is measured by the clock that only goes forward; the one of the wall jumps a year ahead, then back."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    control = Control(Every.parse("10m"))
    for jump in (365 * 86400, -365 * 86400):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.8e9 + jump)
        assert control.after(1) == Verdict.GO_ON
    now[0] += 600
    assert control.after(2) == Verdict.SAVE
    control.saved(2)
    assert control.after(3) == Verdict.GO_ON


@pytest.fixture
def python_s_own_handler():
    """A shell starts what it runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_a_wish_and_the_second_is_carried_out(python_s_own_handler):
    control = Control(Every.parse("10m"))
    with control.listening():
        signal.raise_signal(signal.SIGINT)
        assert control.stop_asked
        assert control.after(1) == Verdict.STOP_INT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is python_s_own_handler
    assert Control(Every.parse("10m")).after(1) == Verdict.GO_ON


@pytest.fixture
def hangup():
    """Set how SIGHUP is handled; under ``nohup`` it is ignored from the start."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_lost_terminal_is_a_wish_to_stop(hangup):
    hangup(signal.SIG_DFL)
    control = Control(Every.parse("10m"))
    with control.listening():
        signal.raise_signal(signal.SIGHUP)
        assert control.after(1) == Verdict.STOP_HUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(hangup):
    hangup(signal.SIG_IGN)
    control = Control(Every.parse("10m"))
    with control.listening():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
        assert control.after(1) == Verdict.GO_ON


def test_exit_codes_are_those_of_the_signals():
    assert {verdict.name: verdict.exit_code for verdict in Verdict if verdict.is_stop} == {
        "STOP_HUP": 129,
        "STOP_INT": 130,
        "STOP_TERM": 143,
    }


def test_a_stop_outweighs_a_checkpoint_and_a_sigterm_a_ctrl_c():
    control = Control(Every.parse("1"))
    with control.listening():
        assert control.after(1) == Verdict.SAVE
        signal.raise_signal(signal.SIGINT)
        assert control.after(1) == Verdict.STOP_INT
        signal.raise_signal(signal.SIGTERM)
        assert control.after(1) == Verdict.STOP_TERM
