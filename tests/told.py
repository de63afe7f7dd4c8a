"""What a user would be told if somebody looked all the time."""

from titer.progress import Task, line


def every_line(monkeypatch):
    """Return a list that takes every line that a display could show from now on."""
    said = []
    for name in ("__enter__", "advance"):
        own = getattr(Task, name)

        def listening(self, *args, own=own, **kwargs):
            result = own(self, *args, **kwargs)
            said.append(line())
            return result

        monkeypatch.setattr(Task, name, listening)
    return said
