"""Results and pages for the tests of reports."""

import re
from html.parser import HTMLParser

import numpy as np
from oracles import random_images
from PIL import Image

from skjepa.reporting.about import About, Rule
from skjepa.reporting.results import Map, Results

HOSTILE = [
    "<script>document.title='broken in'</script>.png",
    '"><img src=x onerror="document.title=\'broken in\'">.png',
    "' onmouseover='document.title=1.png",
    "</script><script>document.title='broken in'</script>.png",
    "<!--.png",
    "&lt;b&gt; & {{ 7 * 7 }} {% raw %}.png",
    "@SIZE@ \u202egnp.exe \u2028 \U0001f600.png",
    ']]>\\"\\u003c/script\\u003e.png',
    " " * 3 + "x" * 300 + ".png",
]
VOID = {"meta", "link", "img", "br", "input", "rect", "line", "polyline"}


def results_of(n: int, *, names=None, seed: int = 0, pictures: int = 12, **changes) -> Results:
    """n scored images, a twentieth of them flagged, one not readable."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n)
    scores[n // 2] = np.nan
    names = [f"folder/{i:05d}.png" for i in range(n)] if names is None else names
    images = random_images(pictures, 24, seed)
    threshold = float(np.nanquantile(scores, 0.05))
    given = {
        "ids": np.array(names, dtype=np.str_),
        "scores": scores,
        "flagged": ~(scores >= threshold),
        "p_values": np.where(np.isnan(scores), np.nan, np.clip(0.5 + scores / 8, 0.01, 1)),
        "threshold": threshold,
        "errors": {n // 2: "cannot be read as an image (<b>broken</b>)"},
        "image": lambda i: Image.fromarray(images[i % pictures]),
        "normal_image": lambda name: Image.fromarray(images[0]),
        "nearest": [[HOSTILE[0], "normal/1.png"] for _ in range(n)],
        "maps": [
            Map(name, rng.normal(size=(n, 2)), rng.normal(size=(30, 2))) for name in ("principal axes", "another one")
        ],
        "about": About(rule=Rule(0.05, None, 99), normal_scores=rng.normal(size=99).tolist(), normal_kind="held out"),
    }
    return Results(**{**given, **changes})


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
