"""One line of text to a :class:`Request`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qimeng_tvm.errors import RequestError

#: (A, B) dtypes we can multiply -> result dtypes, the default first. Accumulation is float32 or int32.
RESULTS: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {
        ("float32", "float32"): ("float32",),
        ("bfloat16", "bfloat16"): ("float32", "bfloat16"),
        ("int8", "int8"): ("int32",),
        ("uint8", "int8"): ("int32",),
    }
)
EPILOGUES = ("bias", "relu")
OPERATORS = ("matmul",)
SUPPORTED = "f32, bf16, int8 (s8 x s8), u8s8 (u8 x s8)"
#: Extents are kept in 32 bits by generated code and by every library we compare with.
MAX_EXTENT = 2**31 - 1

_BYTES = {"float32": 4, "int32": 4, "bfloat16": 2, "int8": 1, "uint8": 1}
_SHORT = {"float32": "f32", "bfloat16": "bf16", "int8": "s8", "uint8": "u8", "int32": "s32"}


@dataclass(frozen=True)
class Request:
    """A matrix product somebody asked for.

    Attributes
    ----------
    operator : str
        ``"matmul"``.
    batch, m, n, k : int
        C[batch, m, n] = A[batch, m, k] @ B[batch, k, n]; ``batch == 1`` means a plain product.
    a_dtype, b_dtype, out_dtype : str
        TVM dtype names; accumulation is float32 or int32.
    transpose_a, transpose_b : bool
        A is stored (k, m); B is stored (n, k).
    constant_b : bool
        B is a weight, known at compile time: it is packed beforehand.
    epilogue : tuple of str
        Elementwise operators after the product, in order: ``"bias"``, ``"relu"``.
    threads : int or None
        Cores to use; None leaves it to the caller.
    trials : int or None
        Measured trials; None leaves it to the caller.
    hardware : str
        ``"host"`` or a profile's name.
    """

    operator: str
    m: int
    n: int
    k: int
    batch: int = 1
    a_dtype: str = "float32"
    b_dtype: str = "float32"
    out_dtype: str = "float32"
    transpose_a: bool = False
    transpose_b: bool = False
    constant_b: bool = False
    epilogue: tuple[str, ...] = ()
    threads: int | None = None
    trials: int | None = None
    hardware: str = "host"

    @property
    def acc_dtype(self) -> str:
        """Dtype of the accumulator, and of the bias: ``float32`` or ``int32``."""
        return "int32" if self.b_dtype == "int8" else "float32"

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Shape of A as stored; three axes only when ``batch > 1``."""
        return self._stored(self.m, self.k, self.transpose_a)

    @property
    def b_shape(self) -> tuple[int, ...]:
        """Shape of B as stored; three axes only when ``batch > 1``."""
        return self._stored(self.k, self.n, self.transpose_b)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result; three axes only when ``batch > 1``."""
        return self._stored(self.m, self.n, False)

    def _stored(self, rows: int, columns: int, transposed: bool) -> tuple[int, ...]:
        plane = (columns, rows) if transposed else (rows, columns)
        return (self.batch, *plane) if self.batch > 1 else plane


def parse(line: str) -> Request:
    """Read one line of text, such as ``"bf16 GEMM 1024x1024x1024 on this CPU"``.

    The words are those of :mod:`qimeng_tvm.grammar`. What is not said: float32 operands, both operands
    variable, nothing transposed, no epilogue, the host, threads and trials left to the caller. ``bf16`` alone
    gives a float32 result (say ``bf16 -> bf16`` for a rounded one); ``int8`` alone is s8 x s8 -> s32.

    Raises
    ------
    RequestError
        One line: the word that was not understood or the contradiction, and what to write instead.
    """
    from qimeng_tvm.grammar import read  # noqa: PLC0415 - the grammar builds on the dataclass above

    return read(line)


def validate(request: Request) -> Request:
    """Return the request unchanged if it can be served.

    Raises
    ------
    RequestError
        Naming the first field that is wrong.
    """
    if request.operator not in OPERATORS:
        raise RequestError(f'"{request.operator}" is not an operator I can make yet; known: {", ".join(OPERATORS)}')
    for name in ("batch", "m", "n", "k"):
        value = getattr(request, name)
        label = name if name == "batch" else name.upper()
        if value < 1:
            raise RequestError(f"{label}={value}: a dimension is a whole number of at least 1; write e.g. {label}=64")
        if value > MAX_EXTENT:
            raise RequestError(f"{label}={value} is too large: a dimension can be {MAX_EXTENT} at most")
    results = RESULTS.get((request.a_dtype, request.b_dtype))
    if results is None:
        raise RequestError(f"{request.a_dtype} x {request.b_dtype} is not supported; supported: {SUPPORTED}")
    if request.out_dtype not in results:
        allowed = " or ".join(_SHORT[r] for r in results)
        raise RequestError(
            f"{request.a_dtype} x {request.b_dtype} -> {request.out_dtype} is not supported; write -> {allowed}"
        )
    for name in request.epilogue:
        if name not in EPILOGUES:
            raise RequestError(f'epilogue "{name}" is not known; known: {", ".join(EPILOGUES)}')
    if len(set(request.epilogue)) != len(request.epilogue):
        raise RequestError(f"epilogue {request.epilogue} names an operator twice; each can come once")
    if request.threads is not None and request.threads < 1:
        raise RequestError(f"{request.threads} threads: at least one is needed; write e.g. 1 thread")
    if request.trials is not None and request.trials < 0:
        raise RequestError(f"{request.trials} trials: write zero trials, or a positive number")
    return request


def describe(request: Request) -> str:
    """Restate the request in one canonical line; ``parse(describe(r)) == r``."""
    a, b = _SHORT[request.a_dtype], _SHORT[request.b_dtype]
    operands = a if a == b and a != "s8" else a + b
    shape = f"M={request.m} N={request.n} K={request.k}" + (f" batch={request.batch}" if request.batch > 1 else "")
    result = "" if request.a_dtype == "float32" else f" -> {_SHORT[request.out_dtype]}"
    parts = [f"{operands}{result} {request.operator} {shape}"]
    if request.transpose_a:
        parts.append("A transposed")
    if request.transpose_b:
        parts.append("B transposed")
    parts.append("constant B" if request.constant_b else "variable B")
    if request.epilogue:
        parts.append("with " + " then ".join(request.epilogue))
    if request.threads is not None:
        parts.append(f"{request.threads} thread{'' if request.threads == 1 else 's'}")
    if request.trials is not None:
        parts.append(f"{request.trials} trial{'' if request.trials == 1 else 's'}")
    parts.append("on this CPU" if request.hardware == "host" else f"on {request.hardware}")
    return ", ".join(parts)


def tensor_bytes(request: Request) -> int:
    """Return the bytes of A, B, the bias if any, and the result, each counted once."""
    a = request.m * request.k * _BYTES[request.a_dtype]
    b = request.k * request.n * _BYTES[request.b_dtype]
    out = request.m * request.n * _BYTES[request.out_dtype]
    bias = request.n * _BYTES[request.acc_dtype] if "bias" in request.epilogue else 0
    return request.batch * (a + b + out) + bias


def check_memory(request: Request, memory_bytes: int) -> None:
    """Refuse a shape whose operands and result do not fit.

    Raises
    ------
    RequestError
        If A + B + C take more than ``memory_bytes``.
    """
    need = tensor_bytes(request)
    if need > memory_bytes:
        shape = f"M={request.m} N={request.n} K={request.k} batch={request.batch}"
        raise RequestError(
            f"{shape} needs {need / 2**30:.1f} GiB for A, B and C, but {memory_bytes / 2**30:.1f} GiB are available; "
            "ask for a smaller shape"
        )
