"""docs/house.md: its picture is what the imports draw, and its table is what tests/floors.py says."""

import re

from floors import FLOORS, GROUND, ROOT, TOP

PAGE = (ROOT / "docs" / "house.md").read_text()


def test_the_picture_is_what_the_script_draws(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import draw_house

    assert draw_house.PICTURE.read_text() == draw_house.drawn(), "draw it anew with: python tools/draw_house.py"


def test_the_picture_has_no_line_upwards():
    """Every part is on a floor, and each stands above all that it imports."""
    from draw_house import direct, floors, imports

    stories = floors(FLOORS | TOP)
    height = {name: number for number, story in enumerate(stories) for name in story}
    found = imports()
    assert height.keys() == FLOORS.keys() | TOP.keys() == found.keys()
    assert all(height[low] < height[name] for name, lows in found.items() for low in lows)
    assert direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_table_lists_the_floors():
    rows = re.findall(r"^\| (`.+?) \| .+ \| (.+?) \|$", PAGE[: PAGE.index("## One training step")], re.M)
    seen, listed = set(), {}
    for names, imported in rows:
        said = set(re.findall(r"`(\w+)`", imported)) | (GROUND if "the ground" in imported else set())
        of = [name.rstrip("/") for name in re.findall(r"`([\w./]+)`", names)]
        assert said <= seen, f"{names} imports from rows above"
        seen |= set(of)
        listed |= dict.fromkeys(of, said)
    assert listed.keys() == FLOORS.keys() | TOP.keys()
    for name, allowed in (FLOORS | TOP).items():
        assert listed[name] == allowed, name
