"""Pages that hold for any name: escaped, self-contained, whole."""

from pathlib import Path

from jinja2 import DictLoader

from tests.helpers.tiny import break_image, draw_image
from vtrain.pages import page
from vtrain.pages.thumbnails import make_thumbnail
from vtrain.system.text import format_percent


def test_a_name_can_be_no_markup() -> None:
    environment = page._environment().overlay(
        loader=DictLoader({"x": "<p>{{ name|one_line }}</p>"})
    )
    shown = environment.get_template("x").render(name="<script>\x1b[31m\u202e\udcff</script>")
    assert shown == "<p>&lt;script&gt;\\x1b[31m\\u202e\\udcff&lt;/script&gt;</p>"


def test_a_thumbnail_is_a_small_picture_in_the_page(tmp_path: Path) -> None:
    thumbnail = make_thumbnail(draw_image(tmp_path / "x.png", size=(300, 150)), edge=100)
    assert thumbnail is not None
    assert (thumbnail.width, thumbnail.height) == (100, 50)
    assert thumbnail.uri.startswith("data:image/jpeg;base64,")


def test_no_thumbnail_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert make_thumbnail(break_image(tmp_path / "x.jpg")) is None
    assert make_thumbnail(tmp_path / "moved.jpg") is None


def test_percent() -> None:
    assert format_percent(0.9705) == "97.0 %"
    assert format_percent(None) == "–"
