"""Elementary functions as polynomials: vector code, where LLVM would call the C library for each element.

The definitions are for float32, with the range handling of the C library but for ``exp`` below 2^-125.5, which is
rounded to zero: softmax and its like have no use for numbers so small, and on many cores each costs a hundred cycles.
float16 and bfloat16 are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import ir, tirx
from tvm_ffi import structural_map, structural_walk

#: Gives a value a name, so that using it several times computes it once.
Name = Callable[[Any], Any]

_CONDITION = "prim.if_then_else"
_NARROW = ("float16", "bfloat16")
_INFINITY, _NAN = float("inf"), float("nan")
_LARGEST, _SMALLEST = 3.4028234663852886e38, 1.1754943508222875e-38
#: 1.5 * 2^23: what is added to it is rounded to an integer, in the lowest bits.
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000
_LOG2_E = 1.4426950408889634
#: ln 2 in two parts; products of the first with an exponent are exact.
_LN2 = (0.693359375, -2.12194440e-4)
#: Cephes (expf, logf), Eigen (tanh, erf): highest power first.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_TANH = (
    (
        *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
        *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_ERF = (
    (
        *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
        *(-7.34990630306855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    ),
    (
        *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
        -1.42647390514189e-02,
    ),
)


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def _i32(value: int) -> Any:
    return tirx.const(value, "int32")


def _lanes(value: Any) -> int:
    """How many elements a value has; arithmetic repeats scalars as often by itself."""
    return int(value.ty.dtype.lanes)


def _wide(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _cast(dtype: str, value: Any) -> Any:
    return tirx.Cast(_wide(dtype, _lanes(value)), value)


def _bits(value: Any) -> Any:
    return tirx.reinterpret(_wide("int32", _lanes(value)), value)


def _float(bits: Any) -> Any:
    return tirx.reinterpret(_wide("float32", _lanes(bits)), bits)


def _select(condition: Any, yes: Any, no: Any) -> Any:
    lanes = _lanes(condition)
    return tirx.Select(condition, *(x if _lanes(x) == lanes else tirx.Broadcast(x, lanes) for x in (yes, no)))


def _clamp(x: Any, low: float, high: float) -> Any:
    """Limit x; NaN stays NaN (``min`` and ``max`` lose it)."""
    above = _select(x < _f32(low), _f32(low), x)
    return _select(x > _f32(high), _f32(high), above)


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    value = _f32(coefficients[0])
    for c in coefficients[1:]:
        value = value * x + _f32(c)
    return value


def _exp(x: Any, name: Name) -> Any:
    """2^n e^r with x = n ln 2 + r.

    The polynomial gives 2 e^r and the scale is 2^(n - 1): n reaches 128. At n = -126, where small x end, the bits of
    the scale are those of zero.
    """
    limited = name(_clamp(x, -126 * _LN2[0], 89.0))
    n = name(_bits(limited * _f32(_LOG2_E) + _f32(_MAGIC)) - _i32(_MAGIC_BITS))
    whole = name(_cast("float32", n))
    r = name(limited - whole * _f32(_LN2[0]) - whole * _f32(_LN2[1]))
    fraction = _polynomial(r, [2 * c for c in _EXP]) * (r * r) + (r + r) + _f32(2.0)
    scale = _float(tirx.shift_left(n + _i32(126), _i32(23)))
    return fraction * scale


def _sigmoid(x: Any, name: Name) -> Any:
    return _f32(1.0) / (_f32(1.0) + _exp(name(_f32(0.0) - x), name))


def _rational(x: Any, limit: float, parts: tuple[Sequence[float], Sequence[float]], name: Name) -> Any:
    """An odd function that is 1 (or -1) beyond ``limit``: x P(x^2) / Q(x^2)."""
    x = name(_clamp(x, -limit, limit))
    square = name(x * x)
    return x * _polynomial(square, parts[0]) / _polynomial(square, parts[1])


def _tanh(x: Any, name: Name) -> Any:
    return _rational(x, 7.90531110763549805, _TANH, name)


def _erf(x: Any, name: Name) -> Any:
    return _rational(x, 4.0, _ERF, name)


def _log(x: Any, name: Name) -> Any:
    """E ln 2 + log(1 + m) with x = 2^e (1 + m), m between sqrt(1/2) - 1 and sqrt(2) - 1."""
    tiny = x < _f32(_SMALLEST)
    bits = name(_bits(_select(tiny, x * _f32(2.0**23), x)))
    e = name(tirx.shift_right(bits - _i32(0x3F3504F3), _i32(23)))
    m = name(_float(bits - tirx.shift_left(e, _i32(23))) - _f32(1.0))
    whole = name(_cast("float32", e - _select(tiny, _i32(23), _i32(0))))
    square = name(m * m)
    rest = _polynomial(m, _LOG) * m * square + whole * _f32(_LN2[1]) - square * _f32(0.5)
    value = name(m + rest + whole * _f32(_LN2[0]))
    finite = _select(x <= _f32(_LARGEST), value, x)
    low = _select(x < _f32(0.0), _f32(_NAN), _f32(-_INFINITY))
    return _select(x <= _f32(0.0), low, finite)


#: Operator to its definition; all are of one argument.
_DEFINITIONS: dict[str, Callable[[Any, Name], Any]] = {
    "tirx.exp": _exp,
    "tirx.log": _log,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
    "tirx.sigmoid": _sigmoid,
}


def _power(base: Any, exponent: Any, name: Name) -> Any | None:
    """Products (and a root) for the constant exponents that models have; None for all others."""
    exponent = exponent.value if isinstance(exponent, tirx.Broadcast) else exponent
    if not isinstance(exponent, (tirx.FloatImm, tirx.IntImm)):
        return None
    base = name(base)
    square = name(base * base)
    known = {1.0: base, 2.0: square, 3.0: square * base, 4.0: square * square, -1.0: _f32(1.0) / base}
    return known.get(float(exponent.value))


def operator_of(expr: Any) -> str:
    """Name of the operator that an expression calls; empty when it is no such call."""
    return str(expr.op.name) if isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op) else ""


def is_expensive(expr: Any) -> bool:
    """Tell whether an expression calls an elementary function: it is worth computing once."""
    found: list[str] = []
    structural_walk(expr, (ir.Call, lambda call: found.append(operator_of(call))))
    return any(name in _DEFINITIONS or name == "tirx.pow" for name in found)


def _replace(call: Any, name: Name) -> Any:
    """Return the expression for a call, or the call."""
    operator, lanes = operator_of(call), _lanes(call)
    dtype = str(call.ty.dtype).split("x", maxsplit=1)[0]
    if (operator not in _DEFINITIONS and operator != "tirx.pow") or dtype not in (*_NARROW, "float32") or lanes < 1:
        return call
    if operator == "tirx.pow":
        value = _power(call.args[0], call.args[1], name) if dtype == "float32" else None
        return call if value is None else name(value)
    x = call.args[0] if dtype == "float32" else _cast("float32", call.args[0])
    value = name(_DEFINITIONS[operator](name(x), name))
    return value if dtype == "float32" else _cast(dtype, value)


def has_conditions(stmt: Any) -> bool:
    """Tell whether values come from one tensor or another by conditions."""
    found: list[bool] = []
    structural_walk(stmt, (ir.Call, lambda call: found.append(operator_of(call) == _CONDITION)))
    return any(found)


def _rewrite_store(store: tirx.BufferStore) -> Any:
    """Replace the calls in what a store writes; shared values are bound before it."""
    if not is_expensive(store.value) or has_conditions(store.value):
        return store
    bound: list[Any] = []

    def name(value: Any) -> Any:
        if isinstance(value, (tirx.Var, tirx.FloatImm)):
            return value
        var = tirx.Var(f"v{len(bound)}", value.ty.dtype)
        bound.append(tirx.Bind(var, value))
        return var

    value = structural_map(store.value, (ir.Call, lambda call: _replace(call, name)))
    written = tirx.BufferStore(store.buffer, value, store.indices)
    return tirx.SeqStmt([*bound, written]) if bound else store


def replace_math(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Put polynomials in place of the elementary functions of a PrimFunc.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        Lowered as far as to vectors: TVM's simplifier, which comes before, would put a named value in every place that
        uses it, and the size of a chain of functions would grow with each link as a power.

    Returns
    -------
    tvm.tirx.PrimFunc
        The same function, where a call of ``exp``, ``log``, ``tanh``, ``erf``, ``sigmoid`` or a power with a small
        constant exponent, of a scalar or a vector, became arithmetic. Stores with an ``if_then_else`` stay: what its
        branches load may only be loaded there, and where the condition differs from lane to lane, TVM takes the store
        apart, but not the statements before it.
    """
    return func.with_body(structural_map(func.body, (tirx.BufferStore, _rewrite_store)))
