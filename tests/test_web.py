"""The web page: in a browser, under attack, and that nothing of its visitors stays."""

import gzip
import io
import os
import re
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_experiment import finish
from tiny_web import models, running

pytest.importorskip("gradio", minversion="6")

from tedm import config
from tedm.errors import TedmError
from tedm.models.export import export
from tedm.models.images import Picture
from tedm.web import incoming, limits, result
from tedm.web.app import Page
from tedm.web.pictures import Given, Pictures

# Gradio counts its requests with pandas, which warns of its next version.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
CHROMIUM = Path("/usr/bin/chromium")
NASTY = "${alert(1)} {{x}} <img src=x onerror=alert(1)> 'a' & b.png"


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def site(known):
    with running(known) as (address, folder):
        yield address, folder
    assert not folder.exists(), "the directory of uploads is still there"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two model folders of a finished experiment."""
    results = tmp_path_factory.mktemp("exported")
    experiment = config.parse(
        {
            "title": "Tiny",
            "image": {"size": 24},
            "datasets": {
                "chests": {
                    "label": "Chests",
                    "source": {"type": "phantom", "site": "jsrt", "count": 7},
                    "split": {"unlabelled": 2, "train": 2, "val": 1, "test": 2},
                }
            },
            "backbones": {
                "ddpm": {
                    "type": "ddpm",
                    "data": "chests",
                    "width": 8,
                    "multipliers": [1, 2],
                    "samples": 0,
                    "training": {"steps": 1, "batch_size": 2},
                }
            },
            "heads": {"LR": {"type": "ridge", "timesteps": [50]}},
            "evaluation": {"train_on": "chests", "test_on": ["chests"], "train_sizes": [1, 2]},
        }
    )
    finish(experiment, results)
    folders = [results / f"model{n}" for n in (1, 2)]
    for n, folder in enumerate(folders, 1):
        export(experiment, results, "LR", n, 0, folder)
    return folders


def png(shape=(37, 23), seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, shape, dtype=np.uint8)
    pixels[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 220
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


# ── in a browser ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser: {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        # Containers that run tests as root have no sandbox for it.
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """Open the page as a new visitor; whatever the browser complains of fails the test."""
    complaints, contexts = [], []

    def opened(width=1280, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda r: complaints.append(f"{r.url}: {r.failure}"))
        page.on(
            "request",
            lambda r: (
                complaints.append(r.url) if not r.url.startswith((site[0], "data:", "blob:")) else None
            ),
        )
        page.goto(site[0])
        page.locator("#tedm-segment").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    # Said when a visitor leaves while the page listens for news.
    # And Gradio's own word on each upload, which it can do nothing about.
    harmless = ("ERR_ABORTED", "Method not implemented.")
    assert [c for c in complaints if not c.endswith(harmless)] == []


def shown(page, name, cards=1):
    """Wait for the result of an image."""
    about = page.locator(".tedm-about strong", has_text=name)
    about.wait_for()
    page.wait_for_function(f"document.querySelectorAll('.tedm-card').length == {cards}")


def put(page, name, content):
    page.locator("#tedm-upload input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def test_a_visitor_sees_what_the_data_are_and_a_first_result(visit):
    page = visit()
    text = page.locator("body").inner_text()
    assert "synthetic" in text
    assert "no medical device" in text
    assert "research only" in text
    shown(page, "disc-1")
    assert (
        page.locator(".tedm-steps figure").count() == 0 or page.locator(".tedm-steps figure").count() == 3
    )
    assert page.locator("html").get_attribute("lang") == "en"
    # Every control has a name, every picture a description.
    assert page.get_by_role("checkbox", name="LR").count() == 1
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0


def test_an_example_and_models_are_chosen_by_keyboard_alone(visit):
    page = visit()
    page.get_by_role("radio", name="Discs 1").focus()
    page.keyboard.press("ArrowRight")
    shown(page, "disc-2")
    box = page.get_by_role("checkbox", name="LR", exact=True)
    for label in ("LR", "LEDM", "1", "6"):
        box = page.get_by_role("checkbox", name=label, exact=True)
        if not box.is_checked():
            box.focus()
            page.keyboard.press("Space")
    page.get_by_role("button", name="Segment", exact=True).focus()
    page.keyboard.press("Enter")
    shown(page, "disc-2", cards=4)
    summary = page.locator(".tedm-card", has_text="LR").first.locator("summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator(".tedm-card[open], .tedm-card details[open]").count() == 1
    assert page.locator(".tedm-card details[open] .tedm-steps figure").count() == 3
    assert page.locator("table caption").inner_text().startswith("Dice in %")


def test_an_upload_is_segmented_and_its_mask_downloaded_at_its_own_size(visit, known, site, tmp_path):
    page = visit()
    page.get_by_role("radio", name="Discs 2").check()
    shown(page, "disc-2")
    put(page, NASTY, png())
    shown(page, "alert(1)")
    assert page.locator(".tedm-result img").count() == 0
    with page.expect_download() as download:
        page.locator(".tedm-download").first.click()
    saved = tmp_path / "mask.png"
    download.value.save_as(saved)
    assert re.fullmatch(r"[\w.-]+_mask\.png", download.value.suggested_filename)
    (tmp_path / "image.png").write_bytes(png())
    name = page.locator(".tedm-card h3").first.evaluate("e => e.firstChild.data") + " n=6"
    expected = known[name].segment(tmp_path / "image.png").mask
    np.testing.assert_array_equal(np.asarray(Image.open(saved)) > 0, expected == 1)
    assert 0 < expected.sum() < expected.size
    assert [p for p in site[1].rglob("*") if p.is_file()] == [], "an upload is still there"


def test_a_wrong_file_is_refused_in_words_and_the_page_goes_on(visit):
    page = visit()
    put(page, "lungs.png", b"#!/bin/sh\necho this is no image\n" * 20)
    page.get_by_text("no PNG, JPEG, TIFF or DICOM image").wait_for()
    assert "Traceback" not in page.locator("body").inner_text()
    page.get_by_role("radio", name="Discs 3").check()
    shown(page, "disc-3")


DROP = """(input, size) => {
    const given = new DataTransfer();
    given.items.add(new File([new Uint8Array(size)], "huge.png"));
    for (const kind of ["dragenter", "dragover", "drop"])
        input.parentElement.dispatchEvent(
            new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: given}));
}"""


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_file_beyond_the_limit_is_refused_before_the_browser_sends_it(visit, tmp_path, way):
    page, sent = visit(), []
    page.on("request", lambda request: sent.append(request.url) if "upload" in request.url else None)
    shown(page, "disc-1")
    place = page.locator("#tedm-upload input[type=file]")
    looks = page.locator("#tedm-upload").evaluate("e => e.outerHTML")
    if way == "chosen":
        with (tmp_path / "huge.png").open("wb") as file:
            file.truncate(limits.MAX_BYTES + 1)
        place.set_input_files(tmp_path / "huge.png")
        assert place.evaluate("input => input.files.length") == 0, "it cannot be chosen again"
    else:
        place.evaluate(DROP, limits.MAX_BYTES + 1)
    said = page.get_by_role("status").filter(has_text="The file is too large: at most 48 MB")
    said.wait_for()
    assert sent == []
    assert page.locator("#tedm-upload").evaluate("e => e.outerHTML") == looks
    put(page, "small.png", png())
    shown(page, "small")


def test_two_visitors_at_once_each_get_their_own(visit, known, tmp_path):
    pages = [visit(), visit()]
    for i, page in enumerate(pages):
        put(page, f"visitor{i}.png", png((20 + 5 * i, 30), seed=i))
    for i, page in enumerate(pages):
        shown(page, f"visitor{i}")
        assert f"30 × {20 + 5 * i} pixels" in page.locator(".tedm-about").inner_text()


def test_two_visitors_with_the_same_file_both_get_a_result(visit):
    pages = [visit(), visit()]
    for page in pages:
        put(page, "same.png", png(seed=5))
    for page in pages:
        shown(page, "same")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_lies_beside_the_screen(visit, scheme):
    page = visit(390, 844, color_scheme=scheme, has_touch=True, is_mobile=True)
    shown(page, "disc-1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('.tedm-card, .tedm-photo, #tedm-segment, #tedm-examples label')]"
        ".filter(e => e.getBoundingClientRect().right > 390).length"
    )
    assert wide == 0
    for label in ("LR", "LEDM", "1", "6"):
        page.get_by_role("checkbox", name=label, exact=True).check()
    page.get_by_role("button", name="Segment", exact=True).tap()
    shown(page, "disc-1", cards=4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_nobody_foresaw_is_a_sentence_on_the_page_and_a_line_in_the_log(visit, monkeypatch, caplog):
    page = visit()

    def broken(*_):
        raise RuntimeError("secret of /srv/server.py")

    monkeypatch.setattr(result, "page", broken)
    page.get_by_role("radio", name="Discs 3").check()
    page.get_by_text("Something went wrong here").wait_for()
    number = re.search(r"no\. (\w+)", page.locator("body").inner_text())[1]
    badge = page.locator("#tedm-output .error")
    badge.wait_for(state="attached")
    assert not badge.is_visible(), "it lies over the result before"
    assert "secret" not in page.content()
    assert number in caplog.text
    assert "secret of /srv" in caplog.text


# ── under attack ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=https://example.org/",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/static/../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static//etc/passwd",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/gradio_api/vibe-code",
        "/docs",
        "/openapi.json",
        "/gradio_api/custom_component/1/client/component/../../../etc/passwd",
        "/gradio_api/stream/a/b/1/playlist.m3u8",
        "/gradio_api/deep_link",
    ],
)
def test_no_file_of_the_server_and_no_other_address_is_read(site, path):
    # httpx would tidy the dots away; a client of bytes does not.
    import http.client

    host, port = site[0].removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.putrequest("GET", path)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 404
    assert b"root:" not in body


def call(address, name, data):
    """Ask for one of the page's functions as its own script would; all that comes back."""
    config = httpx.get(f"{address}/config").json()
    index = {d["api_name"]: d["id"] for d in config["dependencies"]}[name]
    session = secrets.token_hex(5)
    body = {"data": data, "fn_index": index, "session_hash": session, "event_data": None}
    joined = httpx.post(f"{address}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    with httpx.stream(
        "GET", f"{address}/gradio_api/queue/data", params={"session_hash": session}, timeout=20
    ) as stream:
        text = ""
        for line in stream.iter_lines():
            text += line + "\n"
            if "process_completed" in line or "close_stream" in line:
                break
    return text


@pytest.mark.parametrize("key", ["path", "url", "both"])
def test_a_file_that_a_client_names_is_neither_opened_nor_removed(site, known, tmp_path, key):
    address, folder = site
    behind = Page(known, {}, folder)  # the page itself looks again
    victims = [
        tmp_path / "victim.png",
        folder / "victim.png",
        folder.parent / f"victim-{secrets.token_hex(4)}.png",
    ]
    deep = folder / "a" / "b"
    deep.mkdir(parents=True, exist_ok=True)
    victims.append(deep / "victim.png")
    link = folder / secrets.token_hex(4) / "link.png"
    link.parent.mkdir()
    link.symlink_to(victims[0])
    try:
        for victim in victims:
            victim.write_bytes(png())
        for victim in [*victims, link, Path("/etc/passwd")]:
            for name in (str(victim), f"{folder}/x/../{os.path.relpath(victim, folder)}"):
                given = {"meta": {"_type": "gradio.FileData"}, "orig_name": "victim.png", "path": name}
                if key != "path":
                    given["url"] = f"{address}/gradio_api/file={name}"
                if key == "url":
                    given["path"] = f"file://{name}"
                answer = call(address, "receive", [given, None])
                assert "Only files that were uploaded here" in answer
                with pytest.raises(TedmError, match="did not arrive"):
                    behind.receive(name, "")
                assert victim.exists()
    finally:
        for victim in [*victims, link]:
            victim.unlink(missing_ok=True)


def test_an_address_in_place_of_a_file_is_not_fetched(site):
    """The server would show its own page to itself: a request it makes would be answered."""
    address, _ = site
    for target in (f"{address}/config", "http://169.254.169.254/latest/meta-data", "ftp://127.0.0.1/x"):
        given = {"meta": {"_type": "gradio.FileData"}, "path": target, "url": target}
        answer = call(address, "receive", [given, None])
        assert "Only files that were uploaded here" in answer


def test_gradios_own_check_holds_without_the_gate(site, monkeypatch, tmp_path):
    """Two locks on one door: it must not need the first one."""
    from tedm.web.gate import Gate

    monkeypatch.setattr(Gate, "_harmless", lambda *_: True)
    victim = tmp_path / "victim.png"
    victim.write_bytes(png())
    for name in (str(victim), "/etc/passwd", f"{site[1]}/../{tmp_path}/victim.png"):
        given = {"meta": {"_type": "gradio.FileData"}, "path": name, "orig_name": "x.png"}
        answer = call(site[0], "receive", [given, None])
        assert '"success":false' in answer
        assert "victim" not in answer
        assert victim.exists()
    assert [p for p in site[1].rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"content-length": str(limits.MAX_REQUEST + 1)}, 413),
    ],
)
def test_requests_of_other_pages_and_of_any_length_are_refused(site, headers, status):
    import http.client

    host, port = site[0].removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.putrequest("POST", "/gradio_api/queue/join", skip_host="host" in headers)
    for name, value in {"content-length": "2", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"{}")
    assert connection.getresponse().status == status


def test_an_upload_beyond_the_limit_is_refused_before_it_is_sent(site):
    import http.client

    host, port = site[0].removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", str(limits.MAX_BYTES * 2))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "48 MB" in answer.read().decode()
    chunked = httpx.post(f"{site[0]}/gradio_api/upload", content=iter([b"x"]))
    assert chunked.status_code == 411


def test_uploads_that_nobody_asks_for_are_refused_when_they_fill_the_place(site, monkeypatch):
    monkeypatch.setattr(limits, "HELD_FILES", 1000)
    answer = httpx.post(f"{site[0]}/gradio_api/upload", files={"files": ("a.png", bytes(2000))})
    assert answer.status_code == 503
    assert "Try again" in answer.text


def test_visitors_who_left_are_forgotten(site, monkeypatch):
    import gradio as gr

    held = max(gr.Blocks.get_instances(), key=lambda b: b.has_launched).state_holder
    assert held.capacity == limits.SESSIONS
    monkeypatch.setattr(held, "capacity", 3)
    before = len(held.session_data)
    for _ in range(6):
        call(site[0], "segment", [None, ["LR"], [1]])
    assert len(held.session_data) <= max(3, before)
    assert len(held.time_last_used) == len(held.session_data)


def test_a_full_queue_is_a_polite_no(site, monkeypatch):
    """More at once than may wait: each gets an answer or hears that the queue is full, at once."""
    import gradio as gr

    blocks = max(gr.Blocks.get_instances(), key=lambda b: b.server_port or 0)
    monkeypatch.setattr(blocks._queue, "max_size", 3)
    slow = result.page
    monkeypatch.setattr(result, "page", lambda *a: (time.sleep(0.2), slow(*a))[1])
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: call(site[0], "segment", [None, ["LR"], [1]]), range(12)))
    done = ['"success":true' in answer for answer in answers]
    full = ["Queue is full" in answer for answer in answers]
    assert all(a or b for a, b in zip(done, full, strict=True))
    assert 1 <= sum(done) < 12


# ── what is refused before decoding ─────────────────────────────────────────────────────────────


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png():
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(50_001) * 2000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(tags):
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def pages():
    file = io.BytesIO()
    page = Image.new("L", (32, 32), 7)
    page.save(file, format="TIFF", save_all=True, append_images=[page] * 400)
    return file.getvalue()


def scans():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
        file, format="JPEG", progressive=True
    )
    whole = file.getvalue()
    start = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[start:-2] * 5000 + whole[-2:]


def deflated():
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    made.Rows = made.Columns = 32
    made.PixelData = bytes(40 * 2**20)
    made["PixelData"].VR = "OB"
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def tall():
    header = struct.pack(">IIBBBBB", 1, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(40_000)))
        + chunk(b"IEND", b"")
    )


def gif():
    file = io.BytesIO()
    Image.new("P", (32, 32)).save(file, format="GIF")
    return file.getvalue()


BAD = {
    "a bomb in a PNG": (bomb_png, "too large"),
    "a bomb in a TIFF": (
        lambda: tiff({256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 279: 8}),
        "too large",
    ),
    "a tile larger than its image": (
        lambda: tiff({256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 322: 65_520, 323: 65_520, 324: 8, 325: 8}),
        "too large",
    ),
    "a line of pixels": (tall, "too large"),
    "many pages": (pages, "several pages"),
    "many passes": (scans, "too many passes"),
    "a deflated DICOM": (deflated, "deflated"),
    "a volume": (lambda: gzip.compress(bytes(400)), "volume"),
    "a GIF": (gif, "no PNG, JPEG, TIFF or DICOM"),
    "an SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no PNG"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG"),
    "a program": (lambda: b"\x7fELF" + bytes(400), "no PNG"),
    "half a PNG": (lambda: png()[:20], "damaged"),
    "half a DICOM": (lambda: bytes(128) + b"DICM" + b"\x02\0\0\0UL", "damaged|not an image"),
    "one pixel": (lambda: png((1, 1)), "too small"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_image_or_a_trap_is_refused_in_less_than_a_second(tmp_path, what):
    make, why = BAD[what]
    path = tmp_path / "image.png"
    path.write_bytes(make())
    began = time.perf_counter()
    with pytest.raises(TedmError, match=why) as refused:
        limits.check(path)
    assert time.perf_counter() - began < 1
    assert str(tmp_path) not in str(refused.value)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = tmp_path / "image.exe"
    path.write_bytes(png())
    assert limits.check(path) == "raster"


def test_pictures_give_way_to_newer_ones_and_to_time():
    now = [0.0]
    held = Pictures(most=2500, kept=60, clock=lambda: now[0])
    given = [Given(str(i), Picture(str(i), np.zeros((1, 10, 100), np.uint8)), since=0.0) for i in range(3)]
    keys = [held.keep(given[0]), held.keep(given[1])]
    assert held.get(keys[0]) is given[0]  # now the other one is the oldest
    keys.append(held.keep(given[2]))
    assert [held.get(key) is not None for key in keys] == [True, False, True]
    now[0] = 61
    assert held.get(keys[0]) is None


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch):
    import importlib.util

    from tedm.web import server

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TedmError, match=r"pip install 'tedm\[web\]'"):
        server.require()


def test_a_port_in_use_is_said(site):
    from tedm.web import server

    port = int(site[0].rsplit(":", 1)[1])
    with pytest.raises(TedmError, match="--port"), server.listening("127.0.0.1", port):
        pass


# ── what is left behind ─────────────────────────────────────────────────────────────────────────


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, victim = tmp_path / f"{incoming.PREFIX}left", tmp_path / "victim"
    for folder in (left, victim):
        folder.mkdir()
        (folder / "image.png").write_bytes(png())
    (tmp_path / f"{incoming.PREFIX}link").symlink_to(victim)
    (tmp_path / f"{incoming.PREFIX}file").write_bytes(png())
    with incoming.directory() as first:
        assert not left.exists()
        (first / "image.png").write_bytes(png())
        with incoming.directory() as second:
            assert second != first
            assert (first / "image.png").exists(), "a server in use lost its directory"
        assert not second.exists()
    assert not first.exists()
    assert (victim / "image.png").exists()
    assert (tmp_path / f"{incoming.PREFIX}file").exists()


def test_the_command_shows_exported_models_and_leaves_nothing_behind(exported, tmp_path):
    command = [Path(sys.executable).with_name("tedm"), "demo", "--port", "0", "--threads", "1"]
    command += [word for folder in exported for word in ("--models", folder)]
    left = tmp_path / f"{incoming.PREFIX}left"
    left.mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        said = ""
        while "http://" not in said:
            line = server.stdout.readline()
            assert line, said
            said += line
        address = re.search(r"http://\S+", said)[0]
        assert '"LR"' in httpx.get(f"{address}/config").text
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", png())}).json()[0]
        (folder,) = tmp_path.glob(f"{incoming.PREFIX}*")
        assert Path(sent).is_relative_to(folder)
        assert Path(sent).is_file()
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=20)[0]
    assert server.returncode == 0
    assert "Traceback" not in rest
    assert list(tmp_path.glob("tedm-*")) == []
