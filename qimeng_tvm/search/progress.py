"""A progress bar for tuning: best GFLOP/s, trials, time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TuneBar:
    """A bar that can be given to ``tune(..., progress=bar)``; use it in a ``with`` block.

    Parameters
    ----------
    title : str
        What is tuned.
    console : rich.console.Console, optional
        Where to draw; standard error by default, so that results can be piped.
    """

    def __init__(self, title: str = "tuning", console: Console | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} trials"),
            TextColumn("best {task.fields[best]}"),
            TextColumn("{task.fields[left]} left"),
            console=console or Console(stderr=True),
            transient=False,
        )
        self._id = self._bar.add_task(title, total=None, best="-", left="-", visible=False)

    def __call__(self, done: int, total: int, best_gflops: float, seconds_left: float) -> None:
        """Show how far tuning is."""
        best = f"{best_gflops:.1f} GFLOP/s" if best_gflops else "-"
        left = clock(seconds_left) if done < total and seconds_left else "-"
        self._bar.update(self._id, completed=done, total=total, best=best, left=left, visible=True)

    def __enter__(self) -> TuneBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()


def clock(seconds: float) -> str:
    """Return seconds as people read them: ``42 s``, ``3 min 05 s``."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
