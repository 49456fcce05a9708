"""Line charts and the search benchmark's pictures: valid SVG with every line, label and tick, at the right place."""

import re
import xml.etree.ElementTree as ET

import pytest

from qimeng_tvm.bench.curves import Curve
from qimeng_tvm.bench.plot import COLOURS, Line, Panel, chart
from qimeng_tvm.bench.search_plots import write_plots

SVG = "{http://www.w3.org/2000/svg}"


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def corners(path):
    return [tuple(map(float, place.split())) for place in re.split("[ML]", path.get("d").rstrip("Z"))[1:]]


def lines_of(root):
    return [p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2" and "h" not in p.get("d")]


def test_a_chart_has_axes_steps_and_a_legend():
    points = ((1.0, 0.5, 0.4, 0.6), (4.0, 0.5, 0.5, 0.6), (16.0, 1.0, 0.9, 1.0), (64.0, 1.0, 0.9, 1.0))
    panel = Panel("trials", 'share <of> "best" & more', (Line("a<b", 0, points),), (1.0, 8.0, 64.0))
    root = ET.fromstring(chart("T & t", (panel,)))
    found = texts(root)
    assert {"T & t", "trials", 'share <of> "best" & more', "a<b", "1", "8", "64", "0.4", "0.6"} <= set(found)
    (line,) = lines_of(root)
    places = corners(line)
    # Flat up to 16, of which log says two thirds of the way, then up and flat.
    assert len(places) == 4 and line.get("stroke") == COLOURS[0]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = places
    assert (y0, y1, y2, y3) == (y0, y0, y3, y3) and y3 < y0 and x1 == x2
    assert (x1 - x0) / (x3 - x0) == pytest.approx(2 / 3, abs=0.002)


def test_a_value_is_where_its_tick_is():
    flat = ((2.0, 0.8, 0.8, 0.8), (3.0, 0.8, 0.6, 1.0))
    root = ET.fromstring(chart("t", (Panel("x", "y", (Line("one", 0, flat),)),)))
    heights = {e.text: float(e.get("y")) - 4 for e in root.iter(f"{SVG}text") if e.get("text-anchor") == "end"}
    (line,) = lines_of(root)
    assert {y for _, y in corners(line)} == {heights["0.8"]}
    ticks = {e.text: float(e.get("x")) for e in root.iter(f"{SVG}text") if e.get("text-anchor") == "middle"}
    assert corners(line)[0][0] == ticks["2"] and "5" in ticks


def test_lines_of_one_colour_differ_in_dashes():
    count = 2 * len(COLOURS)
    many = tuple(Line(f"system {i}", i, ((1.0, 0.1 * i, 0.1 * i, 0.1 * i),)) for i in range(count))
    root = ET.fromstring(chart("t", (Panel("x", "y", many),)))
    looks = {(p.get("stroke"), p.get("stroke-dasharray")) for p in lines_of(root)}
    assert len(looks) == count
    legend = [e for e in root.iter(f"{SVG}text") if (e.text or "").startswith("system")]
    assert len({(e.get("x"), e.get("y")) for e in legend}) == count
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(float(e.get("x")) < width and float(e.get("y")) < height for e in legend)


def test_nothing_to_draw_is_still_a_picture():
    assert "x" in texts(ET.fromstring(chart("t", (Panel("x", "y", ()),))))


def curve(operator, system, seed, *speeds):
    best = [max(speeds[: i + 1]) for i in range(len(speeds))]
    return Curve(operator, system, seed, len(speeds), tuple((i + 1, 0.5 * i + 1, b) for i, b in enumerate(best)))


def test_one_picture_an_operator_and_one_over_all(tmp_path):
    runs = [curve(o, "mcts", s, 90.0 + s, 95.0, 100.0) for o in ("f32 GEMM 8x8x8", "bf16 GEMM 9x9x9") for s in (0, 1)]
    runs += [curve("f32 GEMM 8x8x8", "metaschedule", 0, 0.0, 10.0, 10.0, 20.0)]
    runs += [curve("f32 GEMM 8x8x8", "random", 0, 50.0, 60.0, 60.0), curve("nothing", "random", 0, 0.0)]
    files = write_plots(runs, tmp_path / "svg")
    assert [f.name for f in files] == ["f32-gemm-8x8x8.svg", "bf16-gemm-9x9x9.svg", "overview.svg"]
    one, other, overview = (ET.fromstring(f.read_text()) for f in files)
    assert {"f32 GEMM 8x8x8", "measured trials", "seconds since the start", "mcts", "metaschedule"} <= set(texts(one))
    # Three systems in two panels: what gave no time at first begins later, and has no band from nothing.
    assert len(lines_of(one)) == 6 and len(lines_of(other)) == 2
    assert {"mcts", "metaschedule (1 of 2)", "the same, without metaschedule"} <= set(texts(overview))
    assert len(lines_of(overview)) == 5
    # The same strategy has the same colour everywhere.
    assert lines_of(one)[0].get("stroke") == lines_of(other)[0].get("stroke") == lines_of(overview)[0].get("stroke")
