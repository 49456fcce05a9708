"""Arrays with guard pages, canaries and poison, to catch a kernel that reaches outside its buffers.

Layout of one allocation, ``place="end"`` (``"start"`` is its mirror image)::

    | guard pages |  canary ...  | data | canary, < 64 bytes | guard pages |

A guard page cannot be read or written: touching it ends the process with SIGSEGV (so run such calls in a worker).
TVM 0.27 compiles for ``data`` aligned to 64 bytes *without checking it at run time*: aligned vector moves crash on
anything less. So the data is put as near to the guard page as that alignment allows, and what remains is canary. The
canaries are checked after the call for writes; they look like NaN in floating-point buffers, so a read of them that
matters shows in the result.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.dlpack import as_tensor
from qimeng_tvm.errors import CheckError

Place = Literal["end", "start"]
Array = npt.NDArray[Any]

#: What TVM compiles for (``kAllocAlignment`` of its runtime).
ALIGNMENT = 64
PAGE = mmap.PAGESIZE
#: Bytes of guard pages on either side (address space, no memory): a row too far must not jump over them.
GUARD = 1 << 20
_PROT_NONE = 0

# Two poisons per dtype: what equals the first after one run and the second after another was never written. The
# first float poison is a NaN, which spreads through arithmetic; the second is tiny, so that it is absorbed: a sum
# that starts from what the output held is NaN in one run, and a number in the other.
_POISON: dict[str, tuple[int, int]] = {
    "float64": (0x7FF8A5A5A5A5A5A5, 0x3BA5A5A5A5A5A5A5),
    "float32": (0x7FC5A5A5, 0x1EA5A5A5),
    "float16": (0x7EA5, 0x01A5),
    "bfloat16": (0x7FE5, 0x1EA5),
}
_EXPONENT = {"float64": 0x7FF8 << 48, "float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of a TVM dtype name (bfloat16 through ``ml_dtypes``)."""
    try:
        return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    except TypeError:
        raise CheckError(f"dtype {name!r} has no NumPy counterpart to check it with") from None


def poison_bits(dtype: str, which: int) -> int:
    """Return the bit pattern of poison 0 or 1 for one element."""
    if dtype in _POISON:
        return _POISON[dtype][which]
    if dtype == "bool":
        return which
    return int.from_bytes(bytes([(0xA5, 0x5A)[which]]) * numpy_dtype(dtype).itemsize, "little")


def compact_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides, in elements."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


class GuardedArray:
    """An array between guard pages, with canaries in everything that is not its own.

    Parameters
    ----------
    shape : sequence of int
        Extents.
    dtype : str
        TVM dtype name.
    strides : sequence of int, optional
        In elements; elements skipped over (a row pitch) become canaries.
    place : str
        ``"end"``: flush against the guard page behind it; ``"start"``: against the one before it.
    misalign : int
        Bytes by which the first element is off a 64-byte boundary. Only for functions that were compiled for
        it: by a smaller declared alignment, or by an element offset (``tensor(offset=True)``).
    seed : int
        Of the canaries' payload; different buffers need different ones, or a copied canary goes unseen.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        strides: Sequence[int] | None = None,
        place: Place = "end",
        misalign: int = 0,
        seed: int = 0,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.strides = compact_strides(self.shape) if strides is None else tuple(int(n) for n in strides)
        item = numpy_dtype(dtype).itemsize
        if len(self.strides) != len(self.shape) or min(self.strides, default=0) < 0 or min(self.shape, default=1) < 1:
            raise CheckError(f"a guarded array needs positive extents and strides; got {self.shape}, {self.strides}")
        if not 0 <= misalign < ALIGNMENT or misalign % item:
            raise CheckError(f"misalign={misalign} must be a multiple of {item} bytes under {ALIGNMENT}")
        self.misalign = misalign
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        self.nbytes = span * item
        # At least one page of canary on the far side.
        inner = -(-(self.nbytes + misalign + ALIGNMENT) // PAGE) * PAGE + PAGE
        self._map = mmap.mmap(-1, inner + 2 * GUARD)
        self._memory = np.frombuffer(self._map, dtype=np.uint8)
        base = self._memory.ctypes.data
        self._inner = self._memory[GUARD : GUARD + inner]
        if place == "end":
            self._start = (inner - self.nbytes - misalign) // ALIGNMENT * ALIGNMENT + misalign
        else:
            self._start = misalign
        self.place = place
        #: Address of the first element.
        self.address = base + GUARD + self._start
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, base + GUARD + inner):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(GUARD), _PROT_NONE) != 0:
                raise CheckError(f"the system refuses a guard page (errno {ctypes.get_errno()})")
        flat = self._inner[self._start : self._start + self.nbytes].view(numpy_dtype(dtype))
        #: The array itself (a view; may be strided).
        self.array: Array = np.lib.stride_tricks.as_strided(flat, self.shape, [s * item for s in self.strides])
        self._outside = np.ones(inner, dtype=bool)
        own = np.zeros(span, dtype=bool)
        np.lib.stride_tricks.as_strided(own, self.shape, self.strides)[...] = True
        self._outside[self._start : self._start + self.nbytes] = ~np.repeat(own, item)
        self._canary = self._make_canary(inner, item, seed)
        np.copyto(self._inner, self._canary, where=self._outside)

    def _make_canary(self, inner: int, item: int, seed: int) -> npt.NDArray[np.uint8]:
        noise = np.random.default_rng(seed).integers(0, 256, inner, dtype=np.uint8)
        quiet = _EXPONENT.get(self.dtype)
        if quiet is not None:
            # In step with the elements (64 is a multiple of every item size): each canary element is a NaN.
            noise.view(f"u{item}")[...] |= np.array(quiet, dtype=f"u{item}")
        return noise

    def bits(self) -> Array:
        """Return the elements as unsigned integers (a view)."""
        item = self.array.dtype.itemsize
        return self.array.view(f"u{item}") if self.array.ndim else self.array.reshape(1).view(f"u{item}").reshape(())

    def poison(self, which: int = 0) -> None:
        """Fill the elements with poison 0 or 1."""
        self.bits()[...] = poison_bits(self.dtype, which)

    def poisoned(self, which: int = 0) -> npt.NDArray[np.bool_]:
        """Tell which elements still hold that poison."""
        return np.asarray(self.bits() == poison_bits(self.dtype, which))

    def fill(self, values: npt.ArrayLike) -> None:
        """Set the elements; the dtype must already be the right one."""
        values = np.asarray(values)
        if values.dtype != self.array.dtype or values.shape != self.shape:
            raise CheckError(
                f"values of {values.dtype}{values.shape} do not fit a buffer of {self.dtype}{self.shape}: "
                "cast them first"
            )
        self.array[...] = values

    def check(self) -> tuple[str, ...]:
        """Return one line for every canary region that was written to."""
        hit = np.flatnonzero((self._inner != self._canary) & self._outside)
        item = self.array.dtype.itemsize
        problems = []
        before, after = hit[hit < self._start], hit[hit >= self._start + self.nbytes]
        between = hit[(hit >= self._start) & (hit < self._start + self.nbytes)]
        if before.size:
            ahead = -((before[-1] - self._start) // item)
            problems.append(f"{before.size} bytes written before the start, the nearest {ahead} elements ahead of it")
        if after.size:
            first = (after[0] - self._start - self.nbytes) // item
            problems.append(f"{after.size} bytes written past the end, the first {first} elements after it")
        if between.size:
            first = (between[0] - self._start) // item
            problems.append(f"{between.size} bytes written between rows, the first at flat element {first}")
        return tuple(problems)

    def tensor(self, offset: bool = False) -> Any:
        """Return a TVM tensor over the same memory.

        Parameters
        ----------
        offset : bool
            Pass an aligned ``data`` pointer and the misalignment as ``byte_offset``.
        """
        shift = self.misalign if offset else 0
        return as_tensor(
            self.address - shift, self.shape, self.dtype, strides=self.strides, owner=self, byte_offset=shift
        )
