"""What a model takes: names, shapes and types of its parameters; flexible sizes fixed, weights bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from qimeng_tvm.errors import ModelError, UsageError

#: The function of a module that is the model.
MAIN = "main"
#: Bytes that TVM's tensors are aligned to.
_ALIGNED = 64

Shape = tuple[int, ...]
Shapes = Sequence[Shape] | Mapping[str, Shape]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    Attributes
    ----------
    name : str
        In the Relax function.
    shape : tuple of int or None
        None for an extent that is not fixed.
    dtype : str
        Of its elements.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        extents = "x".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name} ({self.dtype} {extents or 'scalar'})"


def main_of(module: tvm.IRModule) -> relax.Function:
    """Return the function that is the model.

    Raises
    ------
    ModelError
        If the module has none.
    """
    found = {str(gv.name_hint): f for gv, f in module.functions.items()}.get(MAIN)
    if not isinstance(found, relax.Function):
        raise ModelError(f"the module has no Relax function {MAIN}")
    return found


def parameters_of(module: tvm.IRModule) -> tuple[Parameter, ...]:
    """Return what the model takes, weights that are parameters included.

    Raises
    ------
    ModelError
        If it takes something other than tensors.
    """
    return tuple(
        Parameter(str(p.name), tuple(int(x) if isinstance(x, tirx.IntImm) else None for x in _extents(p)),
                  str(p.ty.dtype))
        for p in main_of(module).params
    )  # fmt: skip


def _extents(param: relax.Var) -> list[Any]:
    shape = getattr(param.ty, "shape", None)
    if shape is None or not hasattr(shape, "values"):
        raise ModelError(f"the model's {param.name} is not a tensor with a known number of axes")
    return list(shape.values)


def fix_shapes(module: tvm.IRModule, shapes: Shapes) -> tvm.IRModule:
    """Fix the flexible extents of a model to those of given shapes: rules serve functions of fixed shapes.

    Parameters
    ----------
    module : tvm.IRModule
        The model.
    shapes : sequence or mapping
        Of its inputs, in their order or by name; none may be left out of a sequence but the last ones.

    Raises
    ------
    UsageError
        If a shape does not fit the model.
    """
    params = {str(p.name): p for p in main_of(module).params}
    told = parameters_of(module)
    if not isinstance(shapes, Mapping):
        if len(shapes) > len(told):
            raise UsageError(f"{len(shapes)} inputs given, and the model takes {len(told)}: {_list(told)}")
        shapes = {p.name: shape for p, shape in zip(told, shapes, strict=False)}
    extents: dict[tirx.Var, int] = {}
    for name, shape in shapes.items():
        if name not in params:
            raise UsageError(f"the model has no input {name!r}; it takes {_list(told)}")
        wanted = _extents(params[name])
        fits = len(wanted) == len(shape) and all(
            int(extent) == n
            if isinstance(extent, tirx.IntImm)
            else not isinstance(extent, tirx.Var) or extents.setdefault(extent, n) == n
            for extent, n in zip(wanted, shape, strict=True)
        )
        if not fits:
            given = "x".join(map(str, shape)) or "scalar"
            raise UsageError(f"the shape {given} does not fit the model's {next(p for p in told if p.name == name)}")
    return relax.transform.BindSymbolicVars(extents, MAIN)(module) if extents else module


def bind_weights(module: tvm.IRModule, weights: Mapping[str, Any]) -> tvm.IRModule:
    """Make parameters of a model constants.

    Parameters
    ----------
    module : tvm.IRModule
        The model.
    weights : mapping
        Arrays by the parameter's name, or as ``relax.frontend.detach_params`` returns them: those of ``main`` in a
        list, for the parameters behind its ``num_input``.

    Raises
    ------
    UsageError
        If there is no such parameter, or a list does not fit.
    """
    told = parameters_of(module)
    if set(weights) == {MAIN} and isinstance(weights[MAIN], Sequence) and MAIN not in {p.name for p in told}:
        behind = told[inputs_of(module) :]
        if len(behind) != len(weights[MAIN]):
            raise UsageError(f"{len(weights[MAIN])} weights given, and the model takes {len(behind)}")
        weights = {p.name: w for p, w in zip(behind, weights[MAIN], strict=True)}
    unknown = set(weights) - {p.name for p in told}
    if unknown:
        raise UsageError(f"the model has no parameter {sorted(unknown)[0]!r}; it takes {_list(told)}")
    return relax.transform.BindParams(MAIN, {name: as_tensor(value) for name, value in weights.items()})(module)


def inputs_of(module: tvm.IRModule) -> int:
    """Return how many of the parameters are inputs; those behind are weights."""
    main = main_of(module)
    return int((main.attrs or {}).get("num_input", len(main.params)))


def as_tensor(value: Any) -> tvm.runtime.Tensor:
    """Return an array of NumPy, PyTorch or TVM in TVM's own memory, or where it lies if that is TVM's already."""
    if isinstance(value, tvm.runtime.Tensor):
        return value
    if hasattr(value, "detach"):
        # Not by way of NumPy, which has no bfloat16; copied, so that nobody writes into a constant.
        return tvm.runtime.from_dlpack(torch_in_place(value)).copyto(tvm.cpu())
    return tvm.runtime.tensor(np.asarray(value))


def torch_in_place(value: Any) -> Any:
    """Return a PyTorch tensor that TVM's code reads where it lies: in one piece, and aligned as it counts on."""
    value = value.detach().contiguous()
    return value if value.data_ptr() % _ALIGNED == 0 else value.clone()


def _list(told: Sequence[Parameter]) -> str:
    return ", ".join(map(str, told)) or "nothing"
