"""Opens a page in a real browser, narrow and wide, light and dark, and lists what is wrong."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 1280)  # of a phone and of a desktop, in pixels
TIMEOUT = 60.0
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DARK = "(prefers-color-scheme: dark)"

# Runs in each copy of the page, before anything else of it.
WATCH = """
const problems = [];
addEventListener("error", event => problems.push("script error: " + event.message));
addEventListener("securitypolicyviolation", event =>
  problems.push("refused: " + event.violatedDirective + " " + event.blockedURI));
const tell = element => element.tagName.toLowerCase() + " '" +
  (element.textContent || element.alt || "").trim().slice(0, 40) + "'";
const parse = color => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const shine = color => {
  const [r, g, b] = color.slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (let each = element; each; each = each.parentElement) {
    const color = parse(getComputedStyle(each).backgroundColor);
    if (color.length === 3 || color[3] > 0.99) return color;
  }
  return [255, 255, 255];
};
const contrast = (one, other) => {
  const [low, high] = [shine(one), shine(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
function check(name) {
  const all = selector => [...document.querySelectorAll(selector)];
  const seen = element => element.getClientRects().length > 0;
  const root = document.documentElement;
  const say = text => problems.push(text);
  if (root.scrollWidth > root.clientWidth) {
    const wide = all("body *").filter(each => seen(each) && !each.closest(".scroll, pre") &&
      each.getBoundingClientRect().right > root.clientWidth + 1);
    say("wider than the window: " + root.scrollWidth + " px: " + wide.slice(0, 3).map(tell));
  }
  for (const each of performance.getEntriesByType("resource"))
    if (!each.name.startsWith("data:")) say("asked for " + each.name);
  for (const each of all("img")) {
    if (!each.complete || each.naturalWidth === 0) say("broken picture: " + each.alt);
    if (!each.getAttribute("alt")) say("a picture without alt");
  }
  for (const each of all("svg").filter(seen)) {
    const box = each.getBoundingClientRect();
    if (box.width < 1 || box.height < 1) say("an empty drawing: " + tell(each));
    const named = each.querySelector(":scope > title") || each.ariaLabel;
    if (!named && !each.closest("[aria-hidden=true]")) say("a drawing without a name");
    for (const text of each.querySelectorAll("text")) {
      const size = text.getBoundingClientRect().height;
      if (size && size < 8) say("text of " + size + " px: " + tell(text));
      if (/NaN|undefined|Infinity/.test(text.outerHTML)) say("no number: " + text.outerHTML);
    }
    if (/(d|x|y|width|height)="[^"]*(nan|inf)/i.test(each.innerHTML)) say("no number in a drawing");
  }
  let level = 0;
  for (const each of all("h1, h2, h3, h4, h5, h6")) {
    const own = Number(each.tagName[1]);
    const fits = own <= level + 1 && (level === 0) === (own === 1);
    if (!fits) say("heading out of order: " + tell(each));
    level = own;
  }
  for (const each of all("table")) {
    if (!each.caption || !each.caption.textContent.trim()) say("a table without a caption");
    if (!each.querySelector("th[scope]")) say("a table without headers: " + tell(each));
  }
  for (const each of all("a[href^='#']"))
    if (!document.getElementById(each.getAttribute("href").slice(1)))
      say("a link to nowhere: " + each.getAttribute("href"));
  const ids = all("[id]").map(each => each.id);
  if (new Set(ids).size < ids.length) say("an id stands twice");
  for (const each of all(".scroll"))
    if (each.tabIndex !== 0) say("no key reaches a region that scrolls: " + tell(each));
  for (const each of all("body *").filter(seen)) {
    const own = [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || each.closest("svg, .skip")) continue;
    const ratio = contrast(parse(getComputedStyle(each).color), ground(each));
    if (ratio < 4.5) say("contrast " + ratio.toFixed(1) + ": " + tell(each));
  }
  const dark = shine(ground(document.body)) < 0.2;
  if (dark !== name.endsWith("dark")) say("colours do not follow the scheme");
  parent.results[name] = [...new Set(problems)].slice(0, 40);
}
"""


def find_browser() -> str:
    """The browser's program; skips the test where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("needs a browser: apt-get install chromium")


def check_page(*paths: Path) -> None:
    """Fail with all that is wrong with self-contained pages, without and within a browser.

    Without: no script, nothing fetched, the policy in its place. Within, at the widths of a phone
    and a desktop, light and dark: nothing is wider than the window but `.scroll` regions, nothing
    is asked of the network, no error, every picture and drawing is there, headings in order, text
    large enough and of enough contrast, tables with captions. The browser is
    started once, for all pages.
    """
    for path in paths:
        assert check_source(path) == [], path
    problems = {name: found for name, found in probe_pages(*paths).items() if found}
    assert problems == {}, problems


def check_source(path: Path) -> list[str]:
    """What is wrong with a page as it is written."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.problems + ([] if reader.policy == POLICY else [f"policy {reader.policy!r}"])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.policy = ""
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            self.problems.append(f"<{tag}>")
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        for name, value in attrs:
            if name.startswith("on"):
                self.problems.append(f"<{tag} {name}>")
            fetched = name in ("src", "srcset", "poster", "data", "background", "xlink:href")
            if fetched or (name == "href" and tag != "a"):
                if not (value or "").startswith("data:"):
                    self.problems.append(f"<{tag} {name}={value!r:.60}>")
            elif name == "href" and not (value or "").startswith("#"):
                self.problems.append(f"a link away: {value!r:.60}")
            elif name == "style" and "url(" in (value or ""):
                self.problems.append(f"style {value!r:.60}")

    def handle_data(self, data: str) -> None:
        if self._style and re.search(r"@import|url\((?!['\"]?data:)", data):
            self.problems.append("the style fetches something")
        self._style = False


def probe_pages(*paths: Path) -> dict[str, list[str]]:
    """Problems of each copy, `<file name> <width> <scheme>`, as the browser finds them."""
    browser = find_browser()
    copies = {
        f"{path.name} {width} {scheme}": (path, width)
        for path in paths
        for width in WIDTHS
        for scheme in ("light", "dark")
    }
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="'
        f'{html.escape(_prepare(path.read_text(encoding="utf-8"), name))}"></iframe>'
        for name, (path, width) in copies.items()
    )
    host = (
        f"<!doctype html><meta charset='utf-8'><script>window.results = {{}}</script>{frames}"
        "<pre id='results'></pre><script>onload = () => document.getElementById('results')"
        ".textContent = JSON.stringify(results)</script>"
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "page.html")
        copy.write_text(host, encoding="utf-8")
        done = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-dev-shm-usage",
                f"--user-data-dir={folder}/profile", "--window-size=1400,1000",
                "--timeout=30000", "--dump-dom", copy.as_uri(),
            ],
            capture_output=True, text=True, timeout=TIMEOUT, check=True,
        )  # fmt: skip
    found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    results: dict[str, list[str]] = json.loads(html.unescape(found[1]))
    assert results.keys() == copies.keys()
    return results


def _prepare(page: str, name: str) -> str:
    """The page with the checks in it, allowed for this copy alone, its scheme made sure of."""
    script = f"<script>{WATCH}addEventListener('load', () => check({json.dumps(name)}))</script>"
    policy = f"{POLICY}; script-src 'unsafe-inline'"
    scheme = "(min-width: 0)" if name.endswith("dark") else "(max-width: 0)"
    assert page.count(POLICY) == 1
    page = page.replace(POLICY, policy).replace(DARK, scheme)
    return page.replace("<meta charset", f"{script}<meta charset", 1)
