"""The check of single intrinsics: shipped families pass, and whoever writes a wrong one is told what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

tvm = pytest.importorskip("tvm")

from qimeng_tvm.check.intrinsic import (  # noqa: E402
    audit_family,
    check_family,
    examine,
    example_parameters,
    example_variants,
    shape_of,
)
from qimeng_tvm.check.worker import Worker  # noqa: E402
from qimeng_tvm.errors import CheckError, IntrinError  # noqa: E402
from qimeng_tvm.hardware import host  # noqa: E402
from qimeng_tvm.intrin import IntrinFamily, families, family  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")

HERE = [f for f in families().values() if f.isa in (host().isa, "generic") and host().has(*f.requires)]
GEMMS = [f for f in HERE if "mr" in f.parameters]
PACKS = [f for f in HERE if f.kind.startswith("pack_")]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(preload=("tvm", "qimeng_tvm.check.tile", "qimeng_tvm.check.copies")) as w:
        yield w


@pytest.mark.parametrize("one", [*GEMMS, *PACKS], ids=lambda f: f.key)
def test_shipped_families_pass(worker: Worker, one: IntrinFamily) -> None:
    reports = audit_family(worker, one) if one in GEMMS[:1] else [examine(worker, one)]
    for report in reports:
        assert report.ok, f"{report.name}: {report.problem}"
        assert report.numbers.cases and report.problem == ""
        assert report.code is not None and (one in PACKS or all(report.code.counts.values())), report
        assert json.loads(json.dumps(report.to_json()))["ok"] is True


@pytest.mark.parametrize("one", families().values(), ids=lambda f: f.key)
def test_examples_are_legal(one: IntrinFamily) -> None:
    assert example_parameters(one) == example_variants(one)[0]
    for values in example_variants(one):
        assert tuple(values) == one.parameters
        if "mr" in values:
            shape = shape_of(one, values)
            assert one.fits(values["mr"], values["nv"]) and shape.nr == values["nv"] * one.lanes
    if one.lanewise:
        assert {(v["step"] > 1, v["in_local"]) for v in example_variants(one)} >= {(False, 0), (True, 1)}
    elif "mr" in one.parameters:
        kinds = {(v.get("a_panel", 0), v["c_local"]) for v in example_variants(one)}
        assert kinds >= {(0, 0), (0, 1)}, "both places of C"


def gemm() -> IntrinFamily:
    if not GEMMS:
        pytest.skip("no GEMM family runs here")
    return GEMMS[0]


def test_parameters_are_checked(worker: Worker) -> None:
    good = example_parameters(gemm())
    for values, words in (
        ({"mr": 1}, "takes parameters"),
        ({**good, "kc": good["kc"] + 1}, "multiple"),
        ({**good, "mr": 0}, "multiple"),
    ):
        with pytest.raises(IntrinError, match=words):
            check_family(worker, gemm(), values)
    with pytest.raises(IntrinError, match="not a GEMM family"):
        check_family(worker, replace(gemm(), parameters=("rows",)), {"rows": 1})


def test_a_family_for_another_machine_is_no_verdict(worker: Worker) -> None:
    with pytest.raises(CheckError, match="lacks nosuch"):
        check_family(worker, replace(gemm(), requires=("nosuch",)))
    with pytest.raises(CheckError, match="cannot run"):
        check_family(worker, replace(gemm(), isa="vax"))


def rewritten(one: IntrinFamily, old: str, new: str) -> IntrinFamily:
    """The family with another impl, by text."""

    def build(*values: int) -> tuple[Any, Any]:
        desc, impl = one.build(*values)
        text = impl.script()
        assert old in text
        return desc, tvm.script.from_source(text.replace(old, new, 1))

    return replace(one, build=build)


def test_whoever_wrote_it_is_told(worker: Worker) -> None:
    def raises(*_: int) -> tuple[Any, Any]:
        raise ZeroDivisionError("lanes")

    one = gemm()
    report = check_family(worker, replace(one, build=raises))
    assert report.kind == "error" and "ZeroDivisionError: lanes" in report.message
    # The meaning of another depth; and what TVM does not take.
    deeper = replace(
        one, build=lambda *v: one.build(*(2 * x if n == "kc" else x for n, x in zip(one.parameters, v, strict=True)))
    )
    report = check_family(worker, deeper)
    assert (report.kind, report.argument) == ("wrong", "desc") and "+= A[" in report.message
    other = replace(one, build=lambda *v: (one.build(*v)[0], one.build(v[0] + 1, *v[1:])[1]))
    report = check_family(worker, other)
    assert report.kind in ("error", "crash") and report.message
    assert not examine(worker, replace(one, mnemonics=("nosuchinstruction",))).ok


def test_a_wrong_copy_is_caught(worker: Worker) -> None:
    for key, old, new in (
        ("generic.pack.pack_rows_s8_s16", "[0, 16, 1, 17", "[16, 0, 1, 17"),
        ("generic.pack.pack_tile_f32", "dst[1, ", "dst[2, "),
    ):
        report = check_family(worker, rewritten(family(key), old, new))
        assert report.kind == "wrong" and "B[" in report.message, report
    # A desc that says something else is refused by tensorize, with words.
    rows, wide = family("generic.pack.pack_rows_s8"), family("generic.pack.pack_rows_s8_s16")
    report = check_family(worker, replace(rows, build=wide.build))
    assert report.kind == "error" and "tensorize" in report.message
