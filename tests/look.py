"""Open a page in Chromium (QtWebEngine) and print measurements of the rendered page as JSON.

python tests/look.py PAGE WIDTH light|dark [PNG]
"""

import json
import sys
from pathlib import Path

LOOK = """(() => {
  const root = document.documentElement, body = document.body;
  const seen = (element) => getComputedStyle(element);
  const trees = [...document.querySelectorAll('button[data-fold]')].map((button) => {
    const nodes = [...document.getElementById(button.dataset.fold).querySelectorAll('details')];
    const before = nodes.map((node) => node.open);
    for (const node of nodes) node.open = false;
    button.click();
    const unfolded = nodes.every((node) => node.open);
    button.click();
    const folded = nodes.every((node) => !node.open);
    nodes.forEach((node, i) => { node.open = before[i]; });
    return {nodes: nodes.length, unfolded, folded};
  });
  const paper = seen(body).backgroundColor;
  document.getElementById('theme').click();
  const other = seen(body).backgroundColor;
  document.getElementById('theme').click();
  const images = [...document.querySelectorAll('.plot img')];
  return JSON.stringify({
    width: innerWidth, needed: root.scrollWidth, height: root.scrollHeight, trees, paper, other,
    ink: seen(body).color,
    loaded: images.every((image) => image.complete && image.naturalWidth > 0),
    images: images.map((image) => image.getBoundingClientRect().width / image.naturalWidth),
    tokens: [...document.querySelectorAll('.thought span')].map((s) => seen(s).backgroundColor),
  });
})()"""


def main(page: str, width: int, theme: str, png: str | None = None) -> None:
    from qt_browser import Browser  # of this folder, which comes first on the path of a script

    browser = Browser(width, theme)

    def report(text: str) -> None:
        found = json.loads(text)
        asked = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        browser.requests[:] = asked
        browser.report(found)
        browser.view.resize(width, min(found["height"] + 20, 8000))
        browser.finish(png, 6000)

    def look() -> None:
        browser.page.runJavaScript(LOOK, report)

    url = Path(page).absolute().as_uri()
    browser.open(url, lambda: browser.after(800, look), seconds=90)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
