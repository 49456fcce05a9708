"""A wrong tvm-ffi is refused at import, with the command that mends it."""

from pathlib import Path

import pytest

from qimeng_tvm import _pins


@pytest.mark.parametrize("installed", ["0.1.15.post2", "none"])
def test_a_wrong_tvm_ffi_is_refused(installed):
    with pytest.raises(ImportError, match=r"pip install apache-tvm-ffi==0\.1\.14\.post1"):
        _pins.check(installed)


def test_the_installed_one_is_accepted():
    _pins.check()


def test_the_pin_is_the_one_that_is_installed_with_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"apache-tvm-ffi=={_pins.TVM_FFI}" in project["dependencies"]
