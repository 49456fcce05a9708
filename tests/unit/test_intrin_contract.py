"""Canonical intrinsic names, discovery and registration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_tvm.errors import IntrinError
from qimeng_tvm.intrin import IntrinName, ensure_registered, families, families_for, family, names_in


def test_every_family_has_a_unique_key_and_says_who_wrote_it():
    import inspect

    for key, one in families().items():
        assert key == one.key == f"{one.isa}.{one.module}.{one.kind}"
        head = inspect.getsource(inspect.getmodule(one.build)).split("from __future__")[0]
        assert "author:" in head, f"{key}: the header does not name an author"


@given(st.sampled_from(sorted(families())), st.data())
def test_a_name_reads_back(key, data):
    one = families()[key]
    values = {p: data.draw(st.integers(0, 5000)) for p in one.parameters}
    parsed = IntrinName.parse(one.intrin_name(**values))
    assert (parsed.key, parsed.version) == (key, one.version)
    assert dict(zip(one.parameters, parsed.values, strict=True)) == values


def test_names_are_found_in_text():
    name = family("x86.avx2_f32.gemm").intrin_name(mr=4, nv=2, kc=64, ku=2, a_panel=0, c_local=1, ahead=0)
    assert names_in(f'["Tensorize", "{name}"], "{name}", "qimeng.not.a.name"') == (name,)


@pytest.mark.parametrize("text", ["", "qimeng.x86", "tvm.x86.avx2_f32.gemm.1x2@1", "qimeng.x86.avx2_f32.gemm.1x2"])
def test_a_wrong_name_is_refused(text):
    with pytest.raises(IntrinError, match="is not an intrinsic name"):
        IntrinName.parse(text)


def test_unknown_family_and_changed_version_name_themselves():
    with pytest.raises(IntrinError, match=r"x86\.nothing\.gemm"):
        ensure_registered("qimeng.x86.nothing.gemm.4x2@1")
    with pytest.raises(IntrinError, match=r"version 999 .* tune again"):
        ensure_registered("qimeng.x86.avx2_f32.gemm.4x2x64x2x0x1@999")


def test_wrong_parameters_are_refused():
    with pytest.raises(IntrinError, match="takes mr, nv, kc"):
        ensure_registered("qimeng.x86.avx2_f32.gemm.4x2@3")
    with pytest.raises(IntrinError, match="takes parameters"):
        family("x86.avx2_f32.gemm").intrin_name(mr=4)


def test_the_widest_family_with_the_features_comes_first():
    f32 = ("float32", "float32", "float32")
    assert [f.key for f in families_for("x86", f32, {"avx2", "fma"})] == ["x86.avx2_f32.gemm"]
    assert families_for("x86", f32, {"avx2"}) == ()
    assert families_for("x86", ("float64", "float64", "float64"), {"avx2", "fma"}) == ()
    both = families_for("x86", f32, {"avx2", "fma", "avx512f"})
    assert [f.key for f in both] == ["x86.avx512_f32.gemm", "x86.avx2_f32.gemm"]


def test_register_pressure():
    one = family("x86.avx2_f32.gemm")
    assert one.fits(6, 2) and one.fits(4, 3) and one.fits(2, 6) and one.fits(1, 8)
    assert not one.fits(7, 2) and not one.fits(4, 4) and not one.fits(3, 4)
    lanes = family("x86.avx2_f32_depthwise.depthwise")
    assert lanes.lanewise and lanes.fits(7, 2) and lanes.fits(2, 7) and not lanes.fits(5, 3)


def test_lane_wise_families_are_asked_for_by_their_kind():
    f32, features = ("float32", "float32", "float32"), {"avx2", "fma", "avx512f"}
    found = families_for("x86", f32, features, kind="depthwise")
    assert [f.lanes for f in found] == [16, 8] and all(f.lanewise for f in found)
