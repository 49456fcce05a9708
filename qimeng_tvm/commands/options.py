"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

LLM_HELP = "openai[:MODEL[@URL]], exchange:FOLDER, replay or replay:FOLDER"

LLM = Annotated[str, typer.Option("--llm", help=f"Who answers: {LLM_HELP}.")]
Rounds = Annotated[int, typer.Option(min=1, help="Answers in a row, at most.")]
Spending = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What the answers may cost, e.g. calls=20,tokens=200000,money=1.5 (default: as [llm] in the "
        "configuration file says, else no limit).",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin again, though an earlier run left a transcript.")]
