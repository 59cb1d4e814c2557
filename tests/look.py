"""Open a page in Chromium (QtWebEngine) and print measurements of the rendered page as JSON.

python tests/look.py PAGE WIDTH light|dark [PNG]

Needs the package PyQt6-WebEngine, which includes the browser; no display is needed.
"""

import json
import os
import sys

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
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    # The colour scheme that the browser reports to the page: 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={int(theme != 'dark')}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu {scheme}"
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    console: list[str] = []
    requests: list[str] = []

    class RecordedPage(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            console.append(message)

    class RequestLog(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):  # noqa: N802
            url = info.requestUrl().toString()
            requests.extend([] if url.startswith(("file:", "data:")) else [url])

    app = QApplication(sys.argv[:1])
    view, request_log = QWebEngineView(), RequestLog()
    page_shown = RecordedPage(view)
    page_shown.profile().setUrlRequestInterceptor(request_log)
    view.setPage(page_shown)

    def report(text: str) -> None:
        found = json.loads(text) | {"console": console, "requests": requests}
        print(json.dumps(found), flush=True)
        view.resize(width, min(found["height"] + 20, 8000))
        QTimer.singleShot(6000 if png else 0, finish)

    def finish() -> None:
        if png:
            view.grab().save(png)
        app.quit()

    view.resize(width, 900)
    view.loadFinished.connect(
        lambda _ok: QTimer.singleShot(800, lambda: page_shown.runJavaScript(LOOK, report))
    )
    view.load(QUrl.fromLocalFile(os.path.abspath(page)))
    view.show()
    QTimer.singleShot(90_000, app.quit)
    app.exec()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
