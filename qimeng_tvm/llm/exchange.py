"""The client for whoever is not behind an API: requests become files in a folder, answers are awaited there.

For a person with a chat window, a batch service, or another program. ``NNN.request.md`` is what to paste,
``NNN.request.json`` the same for programs, ``NNN.reply.md`` the answer. A request that the folder holds already keeps
its number, and its answer if there is one: an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qimeng_tvm.errors import LLMError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.llm.messages import Reply, Request, Usage, readable

_NUMBER = re.compile(r"^(\d{3,})\.request\.json$")
#: Seconds for which a reply must not have grown before it is taken for whole.
_SETTLED = 0.3


@dataclass
class ExchangeClient:
    """Answers by files.

    Attributes
    ----------
    folder : Path
        Made if it is not there.
    timeout : float
        Seconds to wait for one answer.
    model : str
        Name that transcripts give to whoever answers.
    say : callable
        Told once for each request where it lies.
    poll : float
        Seconds between looks.
    """

    folder: Path
    timeout: float = 24 * 3600.0
    model: str = "offline-exchange"
    say: Callable[[str], None] = field(default=lambda _: None)
    poll: float = 0.2
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def name(self) -> str:
        """For people."""
        return f"exchange ({self.folder})"

    def ask(self, request: Request) -> Reply:
        """Write the request, unless it is there, and wait for its answer."""
        with self._lock:  # several conversations may share the folder
            number = self._place(request)
        reply = self.folder / f"{number}.reply.md"
        start = time.monotonic()
        if not reply.exists():
            self.say(f"{request.purpose}: waiting for {reply} (the request is {number}.request.md beside it)")
        while True:
            text = _whole(reply)
            if text is not None:
                return Reply(text, self.model, Usage(calls=1, seconds=time.monotonic() - start))
            if time.monotonic() - start > self.timeout:
                raise LLMError(
                    f"no {reply} after {self.timeout:.0f} s; put the answer to {number}.request.md there, "
                    "and run the same command again"
                )
            time.sleep(self.poll)

    def _place(self, request: Request) -> str:
        """Return the number of the request's files, which exist then."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = [m[1] for p in self.folder.iterdir() if (m := _NUMBER.match(p.name))]
            for number in sorted(taken):
                if _digest_of(self.folder / f"{number}.request.json") == request.digest:
                    return number
            number = f"{max((int(n) for n in taken), default=0) + 1:03d}"
            record = {
                "purpose": request.purpose,
                "key": request.key,
                "digest": request.digest,
                "messages": [asdict(m) for m in request.messages],
                "schema": request.schema,
                "max_tokens": request.max_tokens,
            }
            # What people paste first: a program that waits for the JSON finds both.
            write_atomic(self.folder / f"{number}.request.md", readable(request))
            write_atomic(self.folder / f"{number}.request.json", json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise LLMError(f"cannot use the exchange folder {self.folder}: {error.strerror or error}") from error
        return number


def _digest_of(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LLMError(f"{path} is not JSON: move it away, or repair it") from error
    return str(found.get("digest", "")) if isinstance(found, dict) else ""


def _whole(reply: Path) -> str | None:
    """Return a reply that is not being written any more."""
    try:
        if time.time() - reply.stat().st_mtime < _SETTLED:
            return None
        text = reply.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise LLMError(f"{reply} is not UTF-8 text: save it as such") from error
    return text if text.strip() else None
