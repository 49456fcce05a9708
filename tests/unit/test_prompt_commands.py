"""`qimeng prompts` and `qimeng hardware describe`: what is refused before anybody is asked, in one line."""

import pytest

from qimeng_tvm import cli


@pytest.fixture
def command(capsys):
    """Run the command here: exit code, standard output, standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return call


def test_rule_and_vanilla_are_shown_too(command):
    assert "rule `cpu.gemv`" in command("prompts", "show", "rule", "--operator", "gemv")[1]
    assert "Write a fast GEMM in C" in command("prompts", "show", "vanilla", "--dtype", "f32")[1]


def test_inline_assembly_is_spoken_of_where_it_is_allowed(command):
    line = ("prompts", "show", "intrinsic", "--dtype", "avx512_bf16", "--hardware", "zen5")
    plain, allowed = command(*line)[1], command(*line, "--allow-asm")[1]
    assert "inline assembly" not in plain
    assert "inline assembly is allowed, one instruction (vdpbf16ps) at a time" in allowed


def test_hardware_alone_shows(command):
    code, out, _ = command("hardware", "zen5")
    assert code == 0 and out == command("hardware", "show", "zen5")[1] and "znver5" in out
    assert command("hardware", "--list")[1].split().count("host") == 1
    assert "describe" in command("hardware", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 2, "there is no prompt 'nothing'; there are depthwise, hardware, intrinsic"),
        (["intrinsic"], 2, "to fill in the prompt intrinsic, give --dtype"),
        (["hardware"], 2, "give --manual"),
        (["hardware", "--manual", "none.md"], 2, "cannot read the manual none.md"),
        (["proposal", "--operator", "dance"], 2, "qimeng: "),
        (["proposal", "--operator", "f32 GEMM 8x8x8", "--dtype", "f32"], 2, "does not depend on --dtype"),
        (["intrinsic", "--dtype", "f7"], 2, "no operand type or task 'f7'"),
        (["intrinsic", "--dtype", "f32", "--hardware", "pdp11"], 1, "pdp11"),
        (["rule", "--operator", "gemm", "--allow-asm"], 2, "does not depend on --allow-asm"),
        (["vanilla", "--dtype", "f64"], 2, "no vanilla prompt for 'f64'"),
    ],
)
def test_mistakes_of_prompts_show_are_one_line(command, arguments, code, says):
    ended, out, err = command("prompts", "show", *arguments)
    assert (ended, out) == (code, "") and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --manual FILE"),
        (["--manual", "none.md"], "Give --llm: openai"),
        (["--manual", "none.md", "--llm", "openai"], "cannot read the manual none.md"),
        (["--manual", "m.md", "--llm", "claude"], "no client is called 'claude'"),
        (["--manual", "m.md", "--llm", "exchange:box", "--name", "zen5"], "there is a shipped profile zen5"),
        (["--manual", "m.md", "--llm", "exchange:box", "--out", "a.json"], "--out a.json.toml"),
    ],
)
def test_mistakes_of_describe_are_one_line_and_nobody_is_asked(command, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.md").write_text("A core.")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    monkeypatch.setenv("OPENAI_MODEL", "none")
    ended, out, err = command("hardware", "describe", *arguments)
    assert (ended, out) == (2, "") and says in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.md"]
