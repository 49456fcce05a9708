"""Every mutant of the corpus is caught, by the kind of failure it should be; the originals pass in the same harness."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tvm")

import corpus_artefacts
import corpus_families
import corpus_operators
from corpus import MUTATIONS
from harness import FAILURES, Bench, Mutation, Relay, Unmutated, edited, rewritten

from qimeng_tvm.hardware import host

#: Guards of the corpus: as many mutants as this, and of each group and dtype at least so many.
LEAST, LEAST_OF_A_GROUP = 60, 5

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect"),
    pytest.mark.skipif(not host().has("avx2", "fma"), reason="the corpus mutates families that need AVX2 and FMA"),
    pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="no C compiler"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    relay = Relay(preload=("tvm", "qimeng_tvm.check.tile", "qimeng_tvm.verify"))
    try:
        yield Bench(relay, tmp_path_factory.mktemp("mutants"))
    finally:
        relay.close()


@pytest.fixture(scope="module")
def caught(request: pytest.FixtureRequest) -> Iterator[list[tuple[Mutation, str]]]:
    """What was caught and how; a table of it ends the run."""
    rows: list[tuple[Mutation, str]] = []
    yield rows
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if capture is None or not rows:
        return
    kinds = sorted({kind for _, kind in rows})
    table = Counter((m.group, kind) for m, kind in rows)
    lines = ["", "", f"{'caught as':12}" + "".join(f"{k:>19}" for k in kinds)]
    for group in dict.fromkeys(m.group for m, _ in rows):
        lines.append(f"{group:12}" + "".join(f"{table[group, k] or '-':>19}" for k in kinds))
    with capture.global_and_fixture_disabled():
        print("\n".join([*lines, f"{len(rows)} of {len(MUTATIONS)} mutants run, all caught"]))


@pytest.mark.parametrize("number", range(len(corpus_families.CONTROLS)))
def test_families_as_they_are_pass(bench: Bench, number: int) -> None:
    kind, module, helpers, tile = corpus_families.CONTROLS[number]
    requires = getattr(importlib.import_module(module), kind).__qimeng_family__.requires
    if not bench.hardware.has(*requires):
        pytest.skip(f"needs {', '.join(requires)}")
    verdict = bench.family(kind, {**{h: [] for h in helpers}, module: []}, tile, None)
    assert verdict.kind == "ok", verdict.message


@pytest.mark.parametrize("original", corpus_operators.CONTROLS, ids=lambda o: o.line)
def test_operators_as_they_are_pass(bench: Bench, original: corpus_operators.Original) -> None:
    if original.threads > bench.hardware.cores:
        pytest.skip(f"needs {original.threads} cores")
    base = bench.base(original.line, dict(original.values), original.threads)
    # Through the same text and back as the mutants.
    verdict = bench.operator(base)
    assert verdict.kind == "ok", verdict.message


@pytest.mark.parametrize("types", corpus_artefacts.CONTROLS)
def test_libraries_as_they_are_pass(bench: Bench, types: str) -> None:
    verdict = corpus_artefacts.build_and_check(bench, types, ())
    assert verdict.kind == "ok", verdict.message


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutant_is_caught(bench: Bench, caught: list[tuple[Mutation, str]], mutation: Mutation) -> None:
    if mutation.threads > bench.hardware.cores or not bench.hardware.has(*mutation.requires):
        pytest.skip(f"needs {mutation.threads} cores and {', '.join(mutation.requires) or 'no more'}")
    verdict = mutation.apply(bench)
    assert verdict.kind != "ok", f"not caught: {mutation.breaks}"
    assert verdict.kind in FAILURES, f"it did not run ({verdict.kind}): {verdict.message}"
    assert verdict.kind in mutation.expects, f"caught as {verdict.kind}: {verdict.message}"
    assert verdict.message, "whoever wrote it has to be told what is wrong"
    caught.append((mutation, verdict.kind))


def test_corpus_is_what_it_says() -> None:
    names = [m.name for m in MUTATIONS]
    here = [m for m in MUTATIONS if host().has(*m.requires)]
    assert len(set(names)) == len(names) >= len(here) >= LEAST
    assert all(m.expects and m.expects <= FAILURES for m in MUTATIONS)
    for count in (Counter(m.group for m in MUTATIONS), Counter(m.dtype for m in MUTATIONS)):
        assert min(count.values()) >= LEAST_OF_A_GROUP, count


def test_a_mutation_that_changes_nothing_is_an_error(bench: Bench, tmp_path: Path) -> None:
    for edits in ([("not there", "")], [("aa", "")], [("aaaa", "", 1)]):
        with pytest.raises(Unmutated):
            edited("aaaa", edits)  # type: ignore[arg-type]
    assert edited("abab", [("ab", "x", 1)]) == "abx" and edited("abab", [("ab", "x", "all")]) == "xx"
    script = 'with T.sblock("p"):\n    a = 1\nwith T.sblock("q"):\n    a = 1\n'
    assert rewritten(script, [("q", "1", "2")]).count("1") == 1
    for block, pattern in (("r", "1"), ("p", "2")):
        with pytest.raises(Unmutated):
            rewritten(script, [(block, pattern, "3")])
    with pytest.raises(Unmutated):
        bench.family("gemm", {corpus_families.F32: [("author: hand", "author: nobody")]}, corpus_families.TILE, None)
