"""What it takes to be timed: the contract of every system, ours included.

A new peer is one file under ``peers/`` with one class, and one line in :func:`default_peers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.errors import QimengError, UsageError
from qimeng_tvm.request import Request


class BenchError(QimengError):
    """A system could not be timed."""


@dataclass(frozen=True)
class Variant:
    """One way in which a system computes the case.

    Attributes
    ----------
    call : callable
        The timed closure: the leanest call of the system's interface, output preallocated where it allows that.
    fetch : callable, optional
        Turns what ``call`` returned into an ndarray; needed when ``numpy.asarray`` does not do it.
    label : str
        Which way this is, when a system has several.
    note : str
        What is not like for like: another output type, an allocation inside, fewer threads.
    quantum : float
        Step of a quantized answer, tolerated on top of rounding.
    extra : Mapping[str, Any]
        Further keys of the JSON row, e.g. ``{"decisions": {...}}``.
    """

    call: Callable[[], Any]
    fetch: Callable[[Any], Any] | None = None
    label: str = ""
    note: str = ""
    quantum: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Refusal:
    """A system does not do this case, and why."""

    reason: str


#: The harness checks every variant, tries each for a moment and times the fastest that is right.
Offer: TypeAlias = "Refusal | Variant | Sequence[Variant] | Callable[[], Any]"


@runtime_checkable
class System(Protocol):
    """Something that multiplies matrices, or does whatever else is timed.

    More attributes are read where a system has them: ``isolated`` (run in a child process of its own, for which the
    system must pickle), ``environment()`` (variables for that child), ``once`` (a new child for every case),
    ``inputs(folder)`` and ``reference(folder)`` (read what a case's folder holds; a product's operands where a system
    does not say). ``prepare_seconds`` bounds the preparation in a child, ``answer_seconds`` a turn of it.
    """

    @property
    def name(self) -> str:
        """Name in tables and JSON."""
        ...

    def available(self) -> str | None:
        """Return None when it can run here, else the reason why not."""
        ...

    def prepare(self, request: Any, inputs: Any, threads: int) -> Offer:
        """Do all that lies outside the timed region, and return what to time."""
        ...


@dataclass(frozen=True)
class Peer:
    """Base of the shipped peers: one process each, so that no two libraries share a thread pool or an allocator."""

    name: str = "peer"
    isolated: bool = True
    prepare_seconds: float = 300.0

    def available(self) -> str | None:
        """See :class:`System`."""
        return None

    def environment(self) -> Mapping[str, str]:
        """Return variables that the child process must start with."""
        return {}

    def prepare(self, request: Any, inputs: Any, threads: int) -> Offer:
        """See :class:`System`."""
        raise NotImplementedError


@dataclass(frozen=True)
class CallableSystem:
    """A system made of one function ``(request, inputs, threads) -> Offer``; runs in this process unless told."""

    name: str
    function: Callable[[Request, Inputs, int], Offer]
    isolated: bool = False
    prepare_seconds: float = 300.0

    def available(self) -> str | None:
        """See :class:`System`."""
        return None

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`System`."""
        return self.function(request, inputs, threads)


def variants(offer: Offer) -> tuple[Variant, ...] | Refusal:
    """Bring the shapes an offer may have down to one."""
    if isinstance(offer, Refusal):
        return offer
    if isinstance(offer, Variant):
        return (offer,)
    if callable(offer):
        return (Variant(offer),)
    return tuple(offer) or Refusal("offered nothing")


AnyPeer = TypeVar("AnyPeer", bound=Peer)


def default_peers(names: Iterable[str] | None = None, trials: int = 0) -> tuple[Peer, ...]:
    """Return the shipped peers.

    Parameters
    ----------
    names : iterable of str, optional
        Which ones; all but ``tvm_metaschedule`` by default, and that too when ``trials`` is over zero.
    trials : int
        Measured trials a case for ``tvm_metaschedule`` (32 when it is asked for by name alone).
    """
    from qimeng_tvm.bench.peers.blis import Blis  # noqa: PLC0415 - the peers import this module
    from qimeng_tvm.bench.peers.mkl import Mkl  # noqa: PLC0415
    from qimeng_tvm.bench.peers.onednn import OneDnn  # noqa: PLC0415
    from qimeng_tvm.bench.peers.onnxruntime import OnnxRuntime  # noqa: PLC0415
    from qimeng_tvm.bench.peers.openblas import NumpyOpenBlas, OpenBlasBest  # noqa: PLC0415
    from qimeng_tvm.bench.peers.tvm_default import TvmDefault  # noqa: PLC0415
    from qimeng_tvm.bench.peers.tvm_metaschedule import TvmMetaSchedule  # noqa: PLC0415

    peers: tuple[Peer, ...] = (NumpyOpenBlas(), OpenBlasBest(), OneDnn(), Mkl(), Blis(), OnnxRuntime(), TvmDefault())
    tuned = TvmMetaSchedule(trials=trials or 32)
    if names is None:
        return (*peers, tuned) if trials > 0 else peers
    return named((*peers, tuned), names)


def named(peers: Iterable[AnyPeer], names: Iterable[str]) -> tuple[AnyPeer, ...]:
    """Return the peers of these names, in their order.

    Raises
    ------
    UsageError
        If there is none of a name.
    """
    known = {p.name: p for p in peers}
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown peer {name!r}; choose from {', '.join(known)}")
    return tuple(known[name] for name in wanted)
