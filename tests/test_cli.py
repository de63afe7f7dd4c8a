"""What ends a verb before its time is told in words, and by the exit code that shells know."""

import signal
import subprocess
import sys

import pytest
from told import untold


def test_an_interrupted_verb_says_what_is_kept(titer, monkeypatch):
    def interrupted(text):
        raise KeyboardInterrupt

    monkeypatch.setattr("titer.cli.accelerate.say", interrupted)
    code, _, error = titer("accelerate")
    assert code == 128 + signal.SIGINT
    assert not untold(error, "kept", "same command")


@pytest.mark.parametrize("verb", ["accelerate", "data"])
def test_a_reader_that_goes_away_is_no_error(verb):
    words = [sys.executable, "-c", "from titer.cli import main; main()", verb]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
