"""What a command tells while it works: on standard error, so that standard output holds the result alone."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console


def teller() -> tuple[Console, Callable[[str], None]]:
    """Return the console for progress, and a function that prints one dim line there."""
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, soft_wrap=True)

    return console, say
