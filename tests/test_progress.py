"""The bar is for terminals, and changes nothing of what it counts."""

import pytest

from project.progress import shown


@pytest.mark.parametrize(("terminal", "here"), [(False, True), (True, True), (True, False)])
def test_a_bar_is_shown_in_a_terminal_by_one_process_and_passes_the_steps_on(monkeypatch, capfd, terminal, here):
    monkeypatch.setenv("TTY_COMPATIBLE" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert list(shown(range(3), "Reading", here=here)) == [0, 1, 2]
    assert list(shown(iter("ab"), "Reading", 2, here)) == ["a", "b"]
    out, err = capfd.readouterr()
    assert out == "" and ("Reading" in err) == (terminal and here)
