"""The page in a real browser: it is read without complaint, shows its images, prints, and can do nothing else."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time

import pytest
import torch
from PIL import Image

from dcf.pixels import Pixels
from dcf.report import write_report
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet
from dcf.types import DataSpec

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe"),
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: no chromium or chrome on the PATH"),
]
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


class Browser:
    """A browser without windows, driven through a pair of pipes; one message is one JSON object and a NUL."""

    def __init__(self, folder):
        to_browser, self.out = os.pipe()
        self.inbox, from_browser = os.pipe()
        # The browser reads descriptor 3 and writes 4; moved out of the way first in case they are these already.
        high = [os.dup(fd) for fd in (to_browser, from_browser)]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}', BROWSER, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (to_browser, from_browser, *high):
            os.close(fd)
        self.rest, self.events, self.numbers, self.session = b"", [], itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0")
        answer = self.wait(lambda message: message.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, wanted, seconds=60):
        end = time.monotonic() + seconds
        while True:
            while b"\0" in self.rest:
                raw, _, self.rest = self.rest.partition(b"\0")
                message = json.loads(raw)
                self.events.append(message)
                if wanted(message):
                    return message
            assert select.select([self.inbox], [], [], max(0, end - time.monotonic()))[0], "the browser does not answer"
            piece = os.read(self.inbox, 2**20)
            assert piece, "the browser has gone"
            self.rest += piece

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self):
        os.close(self.out)
        os.close(self.inbox)
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run whose classes are hostile, and of one in memory."""
    folder = tmp_path_factory.mktemp("page")
    spec = DataSpec(1, 8, 8, ("cat", EVIL), ValueSpace((0.5,), (0.25,)))
    param = Pixels()
    param.allocate(spec, torch.tensor([0, 0, 1, 1]))
    param.absorb(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    config = {"data": "digits", "matcher": EVIL, "param": "pixels"}
    synthetic = SyntheticSet(param, spec, config, 0, None, {"license": EVIL})
    run = RunDir(folder / "run")
    run.create(RunConfig(matcher="none"))
    run.append_metrics([{"it": it, "loss": 1 / it, EVIL: float(it)} for it in range(1, 50)])
    synthetic.save(run.result)
    write_report([run.path, synthetic], folder / "page.html")
    return folder / "page.html"


def test_page_opens_without_a_complaint_and_shows_its_images(browser, page):
    browser.open(page)
    assert browser.value("document.images.length") == 4
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.offsetWidth > 0)")
    assert browser.value("[...document.images].every(i => i.alt)")
    lines = "[...document.querySelectorAll('path.curve')].map(p => p.getTotalLength())"
    assert len(browser.value(lines)) == 2
    assert min(browser.value(lines)) > 100
    noise = [m for m in browser.events if m.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")]
    noise += [m for m in browser.events if m.get("method") == "Runtime.exceptionThrown"]
    assert noise == []


def test_hostile_names_do_nothing_and_nothing_is_fetched(browser, page):
    browser.open(page)
    assert browser.value("document.title") != "owned"
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.querySelectorAll('main [onerror], main script').length") == 0
    assert browser.value("[...document.querySelectorAll('th')].some(t => t.innerText.startsWith('<script>'))")
    asked = [m["params"]["request"]["url"] for m in browser.events if m.get("method") == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []


def test_even_a_script_in_the_page_would_not_run(browser, page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</main>", EVIL + "</main>"))
    browser.open(broken)
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.title") != "owned"


def brightness(browser):
    picture = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    return sum(Image.open(io.BytesIO(picture)).convert("L").resize((1, 1)).tobytes())


def test_dark_and_light_are_readable_and_paper_is_white(browser, page):
    browser.open(page)
    for scheme, is_light in (("light", True), ("dark", False)):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (brightness(browser) > 128) == is_light
        for part in ("body", "caption", "a", "tbody th", "footer"):
            assert contrast(browser, part) >= 4.5, (scheme, part)
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])


def contrast(browser, part):
    """Ratio of the luminances of text and ground, as accessibility guidelines define it."""

    def luminance(text):
        parts = [int(n) / 255 for n in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    text = browser.value(f"getComputedStyle(document.querySelector({json.dumps(part)})).color")
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    low, high = sorted([luminance(text), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


def test_page_prints_and_fits_a_telephone(browser, page):
    browser.open(page)
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    assert browser.value("document.documentElement.scrollWidth") <= 360  # wide tables scroll by themselves
    browser.call("Emulation.clearDeviceMetricsOverride")
