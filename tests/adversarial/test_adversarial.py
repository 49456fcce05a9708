"""Every hostile or broken reply is stopped where it should be, with a word that says why, and leaves nothing behind."""

import os
import tempfile
from pathlib import Path

import corpus_kernel
import corpus_python
import psutil
import pytest
from base import GOOD, TASK, block

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.generate.verdict import judge
from qimeng_tvm.hardware import Hardware, host

ENTRIES = (*corpus_python.ENTRIES, *corpus_kernel.ENTRIES)
HERE = TASK.runs_on(host())
# Code for that core runs on any with AVX2 and FMA, and has 16 vector registers to spill, whatever this machine has.
HARDWARE = Hardware.load("zen3")
# Stages that need no machine to run what the reply holds.
READ = {"form", "source"}
# A good reply takes a few; one that does not end all of them.
SECONDS, ENDLESS_SECONDS = 20.0, 8.0
SECRET = "sk-this-must-never-be-seen"


@pytest.fixture(scope="module", autouse=True)
def checker(tmp_path_factory):
    """A worker that checks all of them; a folder that is looked through afterwards, and a key to be found."""
    folder = tmp_path_factory.mktemp("workers")
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    os.environ["OPENAI_API_KEY"] = SECRET
    here, environment = Path.cwd(), dict(os.environ)
    outside = set(here.iterdir())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        with Worker(preload=("tvm",)) as worker:
            yield worker
        assert {child.pid for child in psutil.Process().children(recursive=True)} <= children
        assert list(folder.iterdir()) == []
        assert (Path.cwd(), dict(os.environ)) == (here, {**environment, **_pytest_variables()})
        assert {path for path in here.iterdir() if not path.name.startswith(".")} <= outside
    finally:
        tempfile.tempdir = before
        del os.environ["OPENAI_API_KEY"]


def _pytest_variables():
    return {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}


def _judged(reply, checker, seconds=SECONDS):
    return judge(reply, TASK, HARDWARE, run=HERE, seconds=seconds, checker=checker)


def test_the_corpus_is_large_and_each_entry_has_a_name():
    assert len(ENTRIES) >= 80
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.stages and "accepted" not in entry.stages for entry in ENTRIES)


def test_what_the_entries_spoil_is_itself_accepted(checker):
    verdict = _judged(block(GOOD), checker)
    assert verdict.ok, verdict.findings


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_contained(entry, checker):
    if not HERE and not set(entry.stages) <= READ:
        pytest.skip(f"this machine cannot run {TASK.key}")
    verdict = _judged(entry.reply, checker, ENDLESS_SECONDS if "endless" in entry.name else SECONDS)
    assert verdict.stage in entry.stages, f"{verdict.stage}: {verdict.findings}"
    assert entry.says in verdict.findings
    assert verdict.findings.strip() and len(verdict.findings) < 8_000
    assert SECRET not in verdict.findings
