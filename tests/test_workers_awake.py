"""A Mac is kept awake while a worker works; elsewhere nothing is started."""

import os
import sys
from pathlib import Path

import pytest
from conftest import wait_for

from workers.awake import awake


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program of that name on the PATH that writes how it was called, and stays."""
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho $$ "$@" > "{tmp_path}/called"\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "called"


def called(caffeinate: Path) -> list[str]:
    """Wait for the program; return its process id and its words."""
    wait_for(lambda: caffeinate.exists() and caffeinate.read_text().endswith("\n"), "caffeinate to be called")
    return caffeinate.read_text().split()


def test_a_mac_is_asked_to_stay_awake_for_this_process(caffeinate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    with awake():
        pid, *words = called(caffeinate)

    assert words == ["-i", "-w", str(os.getpid())]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_ctrl_c_in_the_terminal_does_not_let_the_mac_sleep_before_the_worker_has_ended(
    caffeinate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    with awake():
        pid, *_ = called(caffeinate)
        group = os.getpgid(int(pid))

    assert group != os.getpgrp()      # a terminal interrupts its whole group


def test_a_mac_without_caffeinate_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", "/nowhere")

    with awake():
        pass


@pytest.mark.skipif(sys.platform == "darwin", reason="about other systems")
def test_elsewhere_nothing_is_started(caffeinate: Path) -> None:
    with awake():
        pass

    assert not caffeinate.exists()
