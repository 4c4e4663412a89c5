"""Pages in a real browser, where one is installed: by keyboard, with hostile prompts, without a load from elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import hostile_pages
import numpy as np
import pytest
import small_dataset
import test_ablation
import test_evaluation
import test_run

from rankray import store
from rankray.data import rerank
from rankray.data.rerank import Reranking
from rankray.report import browse
from rankray.report import dataset as report
from rankray.report.align import write_align_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; Debian's package is chromium"),
]
AXE = Path(str(importlib.util.find_spec("axe_core_python").origin)).with_name("axe.min.js")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "c": 67, "u": 85}


class Tab:
    """A tab, over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.sent, self.asked, self.said = socket, 0, [], []

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive(timeout=240)).data)
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            elif message.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                self.said.append(message)
            elif message.get("id") == self.sent:
                return message.get("result", {})

    async def js(self, text: str) -> Any:
        found = await self.do("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    async def until(self, text: str) -> None:
        for _ in range(300):
            if await self.js(text):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never: {text}; the page says {await self.js('document.body.innerText')}")

    async def open(self, url: str) -> None:
        await self.do("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def as_seen(self, width: int, scheme: str) -> None:
        """On a screen so wide, light or dark; phones are 390."""
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.do("Emulation.setDeviceMetricsOverride", **screen)
        colours = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.do("Emulation.setEmulatedMedia", features=colours)

    async def faults(self) -> list[str]:
        """What axe calls serious or critical of the page as it is, and whether it is wider than the screen."""
        await self.do("Runtime.evaluate", expression=AXE.read_text("utf-8"))
        told = "v => v.impact + ' ' + v.id + ': ' + v.nodes.map(n => n.html.slice(0, 200)).join(' | ')"
        grave = "r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
        found: list[str] = await self.js(f"axe.run().then(r => {grave}.map({told}))")
        assert found is not None, "axe did not run"
        wide = await self.js("document.documentElement.scrollWidth - window.innerWidth")
        return [*found, *([f"{wide} pixels wider than the screen"] if wide > 0 else [])]

    async def press(self, key: str) -> None:
        about = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": key} if len(key) == 1 else {}
        await self.do("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self.do("Input.dispatchKeyEvent", type="keyUp", **about)


def in_chromium(tmp_path: Path, work: Callable[[Tab], Awaitable[None]]) -> None:
    """Runs `work` in a new tab of a browser of its own."""
    profile = tmp_path / "profile"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
    ]
    with subprocess.Popen(
        [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:

        async def run() -> None:
            port = profile / "DevToolsActivePort"
            for _ in range(600):
                if port.exists() and "\n" in port.read_text():
                    break
                await asyncio.sleep(0.1)
            async with aiohttp.ClientSession() as session:
                tabs = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
                found = await (await session.get(tabs)).json()
                address = next(tab["webSocketDebuggerUrl"] for tab in found if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Network"):
                        await tab.do(f"{domain}.enable")
                    await work(tab)

        try:
            asyncio.run(run())
        finally:
            process.kill()


def test_a_thousand_prompts_are_found_enlarged_and_compared(tmp_path: Path) -> None:
    odd = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    prompts = ["c", *(f"prompt {n}" for n in range(998)), odd]
    scores = small_dataset.SCORES
    given = {**dict.fromkeys(prompts, scores["a"]), "c": scores["c"]}
    path = small_dataset.write(tmp_path / "d", {"0": prompts}, given)
    report.write_report(path, store.read(path).info)

    async def work(tab: Tab) -> None:
        began = time.monotonic()
        await tab.open((tmp_path / "d" / "report.html").as_uri())
        assert time.monotonic() - began < 20  # under 2 s on a machine that does nothing else
        assert await tab.js("document.title") == "Ranked dataset: 1,000 prompts"
        count = "document.querySelector('.find output').textContent"
        assert await tab.js(count) == "1,000 of 1,000 prompts"
        find = "f = document.querySelector('form.find'), f.{} = {}, f.dispatchEvent(new Event('input')), 0"
        await tab.js(find.format("text.value", "'ONERROR'"))
        assert await tab.js(count) == "1 of 1,000 prompts"
        await tab.js(find.format("text.value", "'unanimity'"))
        assert await tab.js(count) == "0 of 1,000 prompts", "a label of the page's, and no prompt"
        await tab.js(find.format("text.value", "''"))
        await tab.js(find.format("failed.checked", "true"))
        assert await tab.js(count) == "1 of 1,000 prompts"
        await tab.js(find.format("failed.checked", "false"))
        await tab.js(find.format("order.value", "'prompt'"))
        assert (await tab.js("document.querySelector('.prompt bdi').textContent")).startswith("<script>")

        await tab.js("document.querySelector('.prompt .zoom').click()")
        shown = "[...document.querySelectorAll('.sides figcaption b')].map(b => b.textContent).join()"
        assert await tab.js(shown) == "1"
        await tab.press("ArrowRight")
        assert await tab.js(shown) == "2"
        await tab.press("c")
        assert await tab.js(shown) == "2,3"
        # Its scores are (2, 20, 9), the third's (1, 10, 5), the first's (3, 30, 0).
        ahead = "[...document.querySelectorAll('.sides dd')].map(d => +d.classList.contains('more')).join('')"
        assert await tab.js(ahead) == "111000"
        await tab.press("ArrowRight")
        assert await tab.js(shown) == "2,1"
        assert await tab.js(ahead) == "001110"
        await tab.press("ArrowDown")
        assert await tab.js("document.querySelector('#viewed').textContent") == "c"
        await tab.press("Escape")
        await tab.until("!document.querySelector('dialog').open")
        assert await tab.js("document.title") == "Ranked dataset: 1,000 prompts"
        assert tab.said == []
        assert [url for url in tab.asked if not url.startswith("data:")] == [
            (tmp_path / "d" / "report.html").as_uri()
        ]

    in_chromium(tmp_path, work)


def test_a_blind_vote_by_keyboard_over_twenty_pairs_becomes_a_reward(tmp_path: Path) -> None:
    prompts = "defghijklmnopqrstuvw"
    scores = np.random.default_rng(0).normal(size=(20, 3, 3)).tolist()
    given = dict(zip(prompts, scores, strict=True))
    path = small_dataset.write(tmp_path / "d", {"0": prompts[:7], "1": prompts[7:]}, given)
    server, _ = browse.server(path, 0, voter="ann")

    async def work(tab: Tab) -> None:
        serving = asyncio.get_running_loop().run_in_executor(None, server.serve_forever)
        await tab.open(f"http://127.0.0.1:{server.server_port}/vote?first=one&second=two")
        says = "document.querySelector('p[role=status]').textContent.startsWith('{} of 20')"
        await tab.until(says.format(0))
        for n in range(20):
            await tab.press(("ArrowLeft", "ArrowRight", "ArrowDown")[n % 3])
            await tab.until(says.format(n + 1))
        await tab.press("u")
        await tab.until(says.format(19))
        await tab.press("ArrowDown")
        await tab.until(says.format(20))
        assert tab.said == []
        server.shutdown()
        await serving

    with server:
        in_chromium(tmp_path, work)
    file = f"{path}.votes.jsonl"
    info = rerank.run(path, str(tmp_path / "o"), Reranking(votes=[file]), lambda line: None)
    assert (info["votes"]["votes"], info["votes"]["ties"]) == (20, 7)
    assert info["rewards"][-1]["name"] == "human"
    assert store.validate(str(tmp_path / "o")).rows == 20


def pages(place: Path, served: str) -> dict[str, str]:
    """A page of each kind that is written, and those of `rankray browse`."""
    path = small_dataset.write(place / "dataset")
    report.write_report(path, store.read(path).info)
    for name in ("ablation", "evaluation", "run"):
        (place / name).mkdir()
    test_ablation.written(place / "ablation")
    test_evaluation.written(place / "evaluation")
    test_run.whole(place / "run")
    for name in ("before", "round-1"):
        small_dataset.write(place / "align" / "evaluation" / name)
    counts = {"rows": 1000, "images": 4000, "steps": 120}
    write_align_report(str(place / "align"), {"rounds": [{**counts, "gain": {"r": test_ablation.gain(0.1)}}]})
    written = [page.parent for page in place.glob("*/report.html")]
    assert len(written) == 5
    found = {page.name: (page / "report.html").as_uri() for page in written}
    return found | {f"browse {path}": f"{served}/{path}" for path in ("", "vote", "votes")}


def test_pages_are_fit_for_all_and_for_a_phone(tmp_path: Path) -> None:
    server, site = browse.server(small_dataset.write(tmp_path / "d"), 0, voter="ann")
    found: dict[str, list[str]] = {}
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _, pair = site.ballot.show(0, (0, 2))
        site.ballot.vote(pair, "left")

        async def work(tab: Tab) -> None:
            for name, url in pages(tmp_path / "pages", f"http://127.0.0.1:{server.server_port}").items():
                for width, scheme in ((1280, "light"), (390, "dark")):
                    await tab.as_seen(width, scheme)
                    await tab.open(url)
                    found[f"{name} {width}"] = await tab.faults()
                    if await tab.js(
                        "document.querySelector('.zoom') && (document.querySelector('.zoom').click(), 1)"
                    ):
                        found[f"{name} {width} enlarged"] = await tab.faults()
            assert tab.said == []

        try:
            in_chromium(tmp_path, work)
        finally:
            server.shutdown()
            thread.join()
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert len(found) == 2 * (8 + 2)


def test_the_site_is_fit_for_all_and_for_a_phone(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "sphinx", "--quiet", str(root / "docs"), str(tmp_path / "site")]
    subprocess.run(command, check=True, timeout=600)
    found: dict[str, list[str]] = {}

    async def work(tab: Tab) -> None:
        for page in sorted((tmp_path / "site").glob("*.html")):
            for width, scheme in ((1280, "light"), (390, "dark")):
                await tab.as_seen(width, scheme)
                await tab.open(page.as_uri())
                found[f"{page.stem} {width}"] = await tab.faults()

    in_chromium(tmp_path, work)
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert len(found) > 40


def test_no_page_runs_what_a_prompt_says(tmp_path: Path) -> None:
    """Nor where nothing but the escaping stands between: without the page's policy."""
    files = hostile_pages.write(tmp_path)
    control = tmp_path / "control.html"
    control.write_text(f"<p>{hostile_pages.TEXT}</p>")
    disturb = (
        "document.querySelectorAll('*').forEach(each => { for (const kind of ['mouseover', 'focus', 'toggle'])"
        " each.dispatchEvent(new Event(kind)); if (each.tagName === 'A' && each.protocol !== 'file:') each.click(); }),"
        " document.title"
    )  # a page's own links to its neighbours are no prompt's, and would be asked for

    async def work(tab: Tab) -> None:
        await tab.open(control.as_uri())
        assert await tab.js(disturb) == "ran"  # or the payload would be none
        for name, file in files.items():
            bare = file.with_name("bare.html")
            bare.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", file.read_text()))
            assert len(bare.read_text()) < len(file.read_text()), name
            for page in (file, bare):
                tab.asked, tab.said = [], []
                await tab.open(page.as_uri())
                assert await tab.js(disturb) != "ran", page
                assert tab.said == [], page
                assert {url.partition("#")[0] for url in tab.asked if not url.startswith("data:")} == {
                    page.as_uri()
                }

    in_chromium(tmp_path, work)
