"""The chat page: one HTML file without any other file or request than those to this server."""

import base64
import hashlib
import html
import json
import re
from functools import lru_cache
from pathlib import Path

TEMPLATE = Path(__file__).parent / "page.html"


def page(*, model: str, show_reasoning: bool, strategies: list[str], strategy: str) -> str:
    """The page of a server."""
    settings = {
        "model": model,
        "showReasoning": show_reasoning,
        "strategies": strategies,
        "strategy": strategy,
    }
    text = json.dumps(settings).replace("<", "\\u003c")  # it stands inside a script element
    return _template().replace("{{model}}", html.escape(model)).replace("{{settings}}", text)


@lru_cache(maxsize=1)
def _template() -> str:
    return TEMPLATE.read_text(encoding="utf-8")


def _digest(tag: str) -> str:
    """The hash by which a browser knows the page's own script or style."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", _template(), flags=re.DOTALL)
    assert found is not None
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return f"'sha256-{digest}'"


PAGE_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
}
