"""Reads a page as a browser would, and checks that it would load and run nothing."""

from html.parser import HTMLParser

VOID = ("meta", "img", "br", "line", "rect", "circle", "path", "polyline", "polygon")


class Checked(HTMLParser):
    """Parses HTML, in which all elements must be closed in order; keeps the elements and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def check_offline(content: str) -> Checked:
    """Check that a page would load and run nothing; returns what is in it."""
    parsed = Checked(content)
    for tag, attributes in parsed.found:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith(("#", "./"))
    assert "url(" not in content and "@import" not in content
    return parsed
