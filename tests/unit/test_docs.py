"""The documentation: links lead somewhere, commands and options that it names exist, the reference is the code's."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from qimeng_tvm import cli
from qimeng_tvm.commands.hardware import ShowUnlessNamed

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
#: Written by hand: what they say is theirs to keep true.
WRITTEN = tuple(p for p in PAGES if p.name != "cli.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def names(pages):
    return [p.name for p in pages]


def blocks(page, language):
    return [body for found, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    text, found = _BLOCK.sub("", page.read_text(encoding="utf-8")), set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchor, count = plain, 0
        while anchor in found:
            count += 1
            anchor = f"{plain}-{count}"
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files_and_headings(page):
    missing = []
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def test_the_readme_leads_to_every_page():
    linked = {link.partition("#")[0] for link in _LINK.findall(PAGES[0].read_text(encoding="utf-8"))}
    assert {f"docs/{p.name}" for p in PAGES[1:]} <= linked


def test_the_reference_of_commands_is_up_to_date():
    path = ROOT / "scripts" / "make_cli_reference.py"
    spec = importlib.util.spec_from_file_location("make_cli_reference", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # Not compared by assert alone: its picture of a long difference hides what to do.
    if script.FILE.read_text(encoding="utf-8") != script.reference():
        pytest.fail("docs/cli.md is not what the commands say: run python scripts/make_cli_reference.py")


def commands_in(text):
    """Yield the words of each call of `qimeng` in a block of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "qimeng" and len(words) > 1:
            yield words[1:]


def problem_of(words):
    """Return what a call names that does not exist, or None."""
    command, rest = typer.main.get_command(cli.app), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        if isinstance(command, ShowUnlessNamed):
            command = command.commands["show"]
        elif rest and not rest[0].startswith("-"):
            return f"no command {rest[0]}"
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "--debug"}
    return next((f"no option {w}" for w in rest if w.startswith("-") and w.split("=")[0] not in known), None)


@pytest.mark.parametrize("page", WRITTEN, ids=names(WRITTEN))
def test_commands_and_options_exist(page):
    calls = [words for text in blocks(page, "bash") for words in commands_in(text)]
    assert {" ".join(words): found for words in calls if (found := problem_of(words))} == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("run 'f32 GEMM 8x8x8' --trials 2", None),
        ("hardware zen5 --json", None),
        ("run 'f32 GEMM 8x8x8' --trails 2", "no option --trails"),
        ("compose model.onnx", "no command compose"),
        ("db list", "no command list"),
    ],
)
def test_what_does_not_exist_is_found(line, problem):
    assert problem_of(shlex.split(line)) == problem


@pytest.mark.parametrize("page", WRITTEN, ids=names(WRITTEN))
def test_python_can_be_read_and_what_it_imports_of_ours_exists(page):
    for source in blocks(page, "python"):
        compile(source, page.name, "exec")
        for module, imported in re.findall(r"^from (qimeng_tvm[\w.]*) import ([\w, ]+)", source, re.MULTILINE):
            loaded = importlib.import_module(module)
            assert [n for n in re.split(r",\s*", imported.strip()) if not hasattr(loaded, n)] == []


@pytest.mark.parametrize("page", WRITTEN, ids=names(WRITTEN))
def test_files_that_it_names_exist(page):
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(
        r"`((?:qimeng_tvm|tests|scripts|examples|schedules|tensorize_intrins|transcripts)/[^`\s]*)`", text
    )
    assert [n for n in named if not re.search(r"[<>*A-Z{]", n) and not (ROOT / n).exists()] == []
