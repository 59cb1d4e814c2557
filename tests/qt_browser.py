"""A page in Chromium (QtWebEngine), for scripts that print what it shows as JSON.

Needs the package PyQt6-WebEngine, which includes the browser; no display is needed.
"""

import json
import os
import sys
from collections.abc import Callable


class Browser:
    """A window of `width` pixels; a page in it sees the colour scheme `theme`, light or dark."""

    def __init__(self, width: int, theme: str):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        # The colour scheme that the browser reports to the page: 0 is dark, 1 is light.
        scheme = f"--blink-settings=preferredColorScheme={int(theme != 'dark')}"
        os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu {scheme}"
        from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWidgets import QApplication

        self.console: list[str] = []
        self.requests: list[str] = []
        console, requests = self.console, self.requests

        class RecordedPage(QWebEnginePage):
            def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
                console.append(message)

        class RequestLog(QWebEngineUrlRequestInterceptor):
            def interceptRequest(self, info):  # noqa: N802
                requests.append(info.requestUrl().toString())

        self.app = QApplication(sys.argv[:1])
        self.view, self.request_log = QWebEngineView(), RequestLog()
        self.page = RecordedPage(self.view)
        self.page.profile().setUrlRequestInterceptor(self.request_log)
        self.view.setPage(self.page)
        self.view.resize(width, 900)

    def after(self, milliseconds: int, action: Callable[[], object]) -> None:
        """Call the action later."""
        from PyQt6.QtCore import QTimer

        QTimer.singleShot(milliseconds, action)

    def open(self, url: str, loaded: Callable[[], object], *, seconds: int) -> None:
        """Open a page, call `loaded` when it is there, and run until `finish` or for `seconds`."""
        from PyQt6.QtCore import QUrl

        self.view.loadFinished.connect(lambda _ok: loaded())
        self.view.load(QUrl(url))
        self.view.show()
        self.after(1000 * seconds, self.app.quit)
        self.app.exec()

    def report(self, found: dict) -> None:
        """Print what was found, with the console and the requests of the page."""
        print(json.dumps(found | {"console": self.console, "requests": self.requests}), flush=True)

    def finish(self, picture: str | None, milliseconds: int) -> None:
        """Close the window; where a picture is wanted, take it after the given time."""

        def close() -> None:
            if picture:
                self.view.grab().save(picture)
            self.app.quit()

        self.after(milliseconds if picture else 0, close)
