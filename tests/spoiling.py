"""Families whose code was changed for the worse, for candidates that are wrong, crash or hang."""

import dataclasses
import itertools
import signal

import tvm

from qimeng_tvm.intrin import registry

#: TVM keeps what is registered under a version.
_VERSIONS = itertools.count(9001)


def spoil(monkeypatch, key, change):
    """Put a new version of the family in force whose code is its changed description."""
    good = registry.family(key)

    def build(*values):
        desc, _ = good.build(*values)
        return desc, change(desc)

    wrong = dataclasses.replace(good, build=build, version=next(_VERSIONS))
    monkeypatch.setattr(registry, "families", lambda: {key: wrong})


def subtract(desc):
    """Subtract where it should add."""
    text = tvm.ir.save_json(desc)
    assert text.count('"prim.Add"') > 0
    return tvm.ir.load_json(text.replace('"prim.Add"', '"prim.Sub"', 1))


def calling(function, *arguments):
    """Return a change that calls a function of the C library before anything else."""

    def change(desc):
        realize, block = desc.body, desc.body.block
        call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", function, *arguments))
        names = ("iter_vars", "reads", "writes", "name_hint")
        more = ("init", "alloc_buffers", "match_buffers", "annotations")
        first = type(block)(
            *(getattr(block, n) for n in names),
            tvm.tirx.SeqStmt([call, block.body]),
            *(getattr(block, n) for n in more),
        )
        return desc.with_body(type(realize)(realize.iter_values, realize.predicate, first))

    return change


crash = calling("raise", int(signal.SIGSEGV))
hang = calling("sleep", 600)
