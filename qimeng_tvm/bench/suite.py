"""The frozen GEMM suite: which matrix products the benchmark times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qimeng_tvm.errors import UsageError
from qimeng_tvm.request import Request

#: Short name -> TVM dtypes of A, B and C.
DTYPES: dict[str, tuple[str, str, str]] = {
    "f32": ("float32", "float32", "float32"),
    "bf16": ("bfloat16", "bfloat16", "float32"),
    "u8s8": ("uint8", "int8", "int32"),
}


@dataclass(frozen=True)
class Case:
    """One matrix product of the suite.

    Attributes
    ----------
    name : str
        Shape as MxNxK, ``12x`` in front for a batch, ``-constB`` behind when B is a weight.
    m, n, k, batch : int
        C[batch, m, n] = A[batch, m, k] @ B[batch, k, n].
    dtype : str
        Key of :data:`DTYPES`.
    constant_b : bool
        B is known beforehand: whoever can, packs it outside the timed region.
    """

    name: str
    m: int
    n: int
    k: int
    batch: int = 1
    dtype: str = "f32"
    constant_b: bool = False

    @property
    def flops(self) -> int:
        """Multiplications and additions of one call."""
        return 2 * self.batch * self.m * self.n * self.k

    @property
    def saving(self) -> float:
        """Nobody computes fewer."""
        return 1.0

    def request(self, threads: int | None = None) -> Request:
        """The case as the rest of the package sees it."""
        a_dtype, b_dtype, out_dtype = DTYPES[self.dtype]
        return Request(
            operator="matmul",
            m=self.m,
            n=self.n,
            k=self.k,
            batch=self.batch,
            a_dtype=a_dtype,
            b_dtype=b_dtype,
            out_dtype=out_dtype,
            constant_b=self.constant_b,
            threads=threads,
        )


# (M, N, K), timed both with a variable and with a constant B.
_SQUARES = (*((s, s, s) for s in (64, 128, 256, 512, 1024, 2048, 1000)), (255, 257, 263))
_ROWS = (1, 4, 16, 64, 128, 512)
_WEIGHTS_KN = ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008))
_TALL = (20000, 64, 64)
_BATCHED = ((12, 128, 64, 128), (12, 128, 128, 64))  # (batch, M, N, K)

#: What ``quick`` keeps: one of each kind, nothing that takes a library more than a few milliseconds.
QUICK_NAMES = (
    "256x256x256",
    "1024x1024x1024",
    "1024x1024x1024-constB",
    "255x257x263",
    "1x4096x4096-constB",
    "16x3072x768-constB",
    "20000x64x64",
    "12x128x64x128",
)


def make_case(m: int, n: int, k: int, *, batch: int = 1, dtype: str = "f32", constant_b: bool = False) -> Case:
    """Build a case with its canonical name."""
    name = "x".join(str(v) for v in ((batch,) if batch > 1 else ()) + (m, n, k))
    return Case(name + ("-constB" if constant_b else ""), m, n, k, batch, dtype, constant_b)


def gemm_suite(dtypes: Sequence[str] = ("f32",), quick: bool = False) -> tuple[Case, ...]:
    """Return the suite for the dtypes asked for.

    Parameters
    ----------
    dtypes : sequence of str
        Keys of :data:`DTYPES`.
    quick : bool
        Only the cases of :data:`QUICK_NAMES`.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r} for the benchmark; choose from {', '.join(DTYPES)}")
    cases: list[Case] = []
    for dtype in dtypes:
        for m, n, k in _SQUARES:
            cases += [make_case(m, n, k, dtype=dtype, constant_b=constant) for constant in (False, True)]
        for k, n in _WEIGHTS_KN:
            cases += [make_case(m, n, k, dtype=dtype, constant_b=True) for m in _ROWS]
        cases.append(make_case(*_TALL, dtype=dtype))
        cases += [make_case(m, n, k, batch=batch, dtype=dtype) for batch, m, n, k in _BATCHED]
    return tuple(c for c in cases if not quick or c.name in QUICK_NAMES)
