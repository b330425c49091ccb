"""The progress bar of long commands: by rich if that is installed, else a plain one."""

import sys


class _PlainBar:
    """Progress on one line of a terminal, or a line per operation in a file."""

    def __init__(self, total):
        self._total, self._done = total, 0

    def tell(self, text):
        if sys.stderr.isatty():
            filled = 30 * self._done // max(1, self._total)
            sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (30 - filled)}] {self._done}/{self._total} {text}")
            sys.stderr.flush()

    def advance(self):
        self._done += 1

    def stop(self):
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


class _RichBar:
    """Progress drawn by rich."""

    def __init__(self, total):
        import rich.console
        import rich.progress as rp

        console = rich.console.Console(stderr=True)
        columns = rp.BarColumn(), rp.MofNCompleteColumn(), rp.TimeElapsedColumn(), rp.TextColumn("{task.description}")
        # no thread of its own: this process forks
        self._bar = rp.Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=total)
        self._shown = console.is_terminal

    def tell(self, text):
        if self._shown:
            self._bar.start()  # stopped for each line of the table
        self._bar.update(self._task, description=text, refresh=self._shown)

    def advance(self):
        self._bar.advance(self._task)

    def stop(self):
        if self._shown:
            self._bar.stop()


def make_bar(total):
    """Return a bar with `tell(text)`, `advance()` and `stop()`; `total` advances fill it."""
    try:
        return _RichBar(total)
    except ImportError:
        return _PlainBar(total)
