"""The check of pages finds what it is for."""

from pathlib import Path

from tests.helpers.browser import POLICY, check_source, probe_pages

BROKEN = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>p {{ color: #bbb; }}</style></head><body>
<h2>late</h2><p>pale</p>
<img src="http://127.0.0.1:9/x.png" alt="fetched"><img src="data:image/png;base64,AAAA">
<svg width="0" height="5"><title>x</title></svg><svg viewBox="0 0 9 9" width="9"></svg>
<table><tr><td>1</td></tr></table><a href="#nowhere">x</a>
<div style="width: 800px">wide</div><div class="scroll">x</div>
<button onclick="x()">x</button></body></html>"""


def test_all_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text(BROKEN, encoding="utf-8")
    source = check_source(page)
    assert "<button onclick>" in source
    assert any("127.0.0.1" in each for each in source)
    found = probe_pages(page)
    phone = "\n".join(found["broken.html 390 light"])
    for part in (
        "wider than the window: 8", "refused: img-src", "broken picture", "a picture without alt",
        "an empty drawing", "a drawing without a name", "heading out of order",
        "a table without a caption", "a table without headers", "a link to nowhere: #nowhere",
        "no key reaches a region", "contrast",
    ):  # fmt: skip
        assert part in phone, part
    assert not any("wider" in each for each in found["broken.html 1280 light"])
    assert any("colours do not follow the scheme" in each for each in found["broken.html 390 dark"])
