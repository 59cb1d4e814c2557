"""Use the chat page in a browser (PyQt6-WebEngine), print what it shows, and take a picture.

python tests/look_chat.py URL WIDTH light|dark [STRATEGY] [PICTURE.png]
"""

import json
import os
import sys

ASK = """(() => {
  document.getElementById('strategy').value = STRATEGY;
  const question = document.getElementById('question');
  question.value = 'What is 12 + 7?\\nThink first.';
  question.dispatchEvent(new Event('input'));
  document.getElementById('form').requestSubmit();
})()"""
LOOK = """(() => {
  const shown = (name) => [...document.querySelectorAll(name)].map((e) => e.textContent);
  document.querySelectorAll('details').forEach((box) => { box.open = true; });
  const root = document.documentElement;
  return JSON.stringify({
    busy: document.getElementById('send').textContent === 'Stop',
    width: innerWidth, needed: root.scrollWidth, texts: shown('.text'), notes: shown('.note'),
    thoughts: shown('.thought'), boxes: shown('summary'),
    paper: getComputedStyle(document.body).backgroundColor,
    send: document.getElementById('send').getBoundingClientRect().right,
  });
})()"""


def main(url: str, width: int, theme: str, strategy: str = "greedy", png: str = "") -> None:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
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
            requests.append(info.requestUrl().toString())

    app = QApplication(sys.argv[:1])
    view, request_log = QWebEngineView(), RequestLog()
    page = RecordedPage(view)
    page.profile().setUrlRequestInterceptor(request_log)
    view.setPage(page)

    def look() -> None:
        page.runJavaScript(LOOK, report)

    def report(text: str) -> None:
        found = json.loads(text)
        if found["busy"]:
            QTimer.singleShot(300, look)
            return
        print(json.dumps(found | {"console": console, "requests": requests}), flush=True)
        QTimer.singleShot(2500 if png else 0, finish)

    def finish() -> None:
        if png:
            view.grab().save(png)
        app.quit()

    def ask(_ok: bool) -> None:
        page.runJavaScript(ASK.replace("STRATEGY", json.dumps(strategy)))
        QTimer.singleShot(500, look)

    view.resize(width, 900)
    view.loadFinished.connect(ask)
    view.load(QUrl(url))
    view.show()
    QTimer.singleShot(150_000, app.quit)
    app.exec()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
