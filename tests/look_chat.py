"""Use the chat page in a browser (PyQt6-WebEngine), print what it shows, and take a picture.

python tests/look_chat.py URL WIDTH light|dark [STRATEGY] [PICTURE.png]
"""

import json
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
    from qt_browser import Browser  # of this folder, which comes first on the path of a script

    browser = Browser(width, theme)

    def look() -> None:
        browser.page.runJavaScript(LOOK, report)

    def report(text: str) -> None:
        found = json.loads(text)
        if found["busy"]:
            browser.after(300, look)
            return
        browser.report(found)
        browser.finish(png, 2500)

    def ask() -> None:
        browser.page.runJavaScript(ASK.replace("STRATEGY", json.dumps(strategy)))
        browser.after(500, look)

    browser.open(url, ask, seconds=150)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
