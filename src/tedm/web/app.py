"""The page: what is on it, and what happens when somebody uses it."""

import functools
import html
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import gradio as gr

from tedm.errors import TedmError
from tedm.models import Models, images
from tedm.web import catalogue, limits, pieces, result
from tedm.web.examples import thumbnail
from tedm.web.gate import uploaded
from tedm.web.pictures import Given, Pictures

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("tedm.web")
NOTHING = "Choose an example or upload an image first."
GONE = "Your image is no longer here: images are kept for half an hour. Upload it once more."
LOST = "The file did not arrive. Upload it once more."
EXAMPLE = "example:"  # before the name of an example, where a visitor's image has its key


class Page:
    """What the page knows, and what its buttons do.

    Args:
        models: to choose from.
        examples: images by the name that visitors see.
        incoming: directory where uploads arrive.
    """

    def __init__(self, models: Models, examples: Mapping[str, Given], incoming: Path) -> None:
        self.models, self.examples, self.pictures = models, dict(examples), Pictures()
        self.incoming = incoming.resolve()
        # By the file where it was: the same image from two visitors at once is one file to Gradio.
        self._read: WeakValueDictionary[Path, Given] = WeakValueDictionary()
        self.synthetic = all(model.synthetic for model in models.values())
        self.like = next(iter(models.values())).preprocessing

    def receive(self, path: str | None, before: str) -> str:
        """Read an uploaded file, which is gone afterwards; the key of its image."""
        if path is None:
            raise TedmError(NOTHING)
        given = self._arrived(Path(path))
        self.pictures.forget(before)
        return self.pictures.keep(given)

    def _arrived(self, file: Path) -> Given:
        # The gate has checked the name, too; but by it a client decides what is opened and removed.
        if not uploaded(file, self.incoming):
            raise TedmError(LOST)
        if not file.is_file():
            before = self._read.get(file)
            if before is None:
                raise TedmError(LOST)
            return replace(before, since=time.monotonic())
        try:
            limits.check(file)
            picture = images.read(file, self.like, max_pixels=limits.MAX_PIXELS, name="The file")
        finally:
            file.unlink(missing_ok=True)
        if not isinstance(picture, images.Picture):
            raise TedmError("This is a volume. This page takes one image; volumes: tedm segment.")
        given = Given(file.stem[:80] or "image", picture, origin="Your image; nobody keeps it.")
        self._read[file] = given
        return given

    def segment(self, key: str, methods: Iterable[str], sizes: Iterable[int]) -> str:
        """Segment the image of a key with the chosen models; HTML."""
        names = catalogue.chosen(self.models, list(methods or ()), list(sizes or ()))
        if not names:
            raise TedmError("Choose at least one method and one number of training images.")
        return result.page(self._given(key), self.models, names)

    def _given(self, key: str) -> Given:
        if not key:
            raise TedmError(NOTHING)
        if key.startswith(EXAMPLE):
            return self.examples[key.removeprefix(EXAMPLE)]
        given = self.pictures.get(key)
        if given is None:
            raise TedmError(GONE)
        return given


def polite(action: Callable[P, R]) -> Callable[P, R]:
    """What goes wrong, as a sentence on the page; what nobody foresaw also in the log, in full."""

    @functools.wraps(action)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return action(*args, **kwargs)
        except TedmError as error:
            raise _sorry(str(error)) from None
        except Exception:
            number = secrets.token_hex(3)
            log.exception("no. %s", number)
            raise _sorry(
                f"Something went wrong here, and not on your side (no. {number}). Whoever runs this page"
                " finds more in its log."
            ) from None

    return guarded


def _sorry(text: str) -> gr.Error:
    return gr.Error(html.escape(text), duration=15, title="That did not work", print_exception=False)


def build(page: Page) -> tuple[gr.Blocks, dict[str, Any]]:
    """Lay the page out; also how it looks, which Gradio wants where it is mounted."""
    names = list(page.examples)
    first = EXAMPLE + names[0] if names else ""
    methods, sizes = catalogue.first_choice(page.models)
    if first:
        page.segment(first, methods, sizes)  # libraries load at the first one; its time would mislead
    shown = page.segment(first, methods, sizes) if first else result.message(NOTHING)
    with gr.Blocks(
        title="tedm: segment an image", analytics_enabled=False, delete_cache=(60, 300)
    ) as blocks:
        key = gr.State(first, time_to_live=limits.KEPT)
        gr.HTML(pieces.render("head", classes=_classes(page.models), synthetic=page.synthetic))
        with gr.Row(elem_classes="tedm-main"):
            with gr.Column(scale=2, min_width=300, elem_classes="tedm-choice"):
                gr.HTML("<h2>1. Image</h2>")
                example = gr.Radio(
                    names,
                    value=names[0] if names else None,
                    label="Examples from the test sets, with their truth",
                    visible=bool(names),
                    elem_id="tedm-examples",
                )
                upload = gr.File(
                    label="Your own image: PNG, JPEG, TIFF or DICOM",
                    type="filepath",
                    height=150,
                    elem_id="tedm-upload",
                )
                # Gradio's own would leave an empty file behind for each one that it hands on.
                upload.preprocess = _path_of  # type: ignore[method-assign]
                gr.HTML("<h2>2. Models</h2>")
                method = gr.CheckboxGroup(catalogue.methods_of(page.models), value=methods, label="Methods")
                size = gr.CheckboxGroup(
                    [(str(n), n) for n in catalogue.sizes_of(page.models)],
                    value=sizes,
                    label="Labelled training images",
                )
                button = gr.Button("Segment", variant="primary", elem_id="tedm-segment")
            with gr.Column(scale=5, min_width=320, elem_id="tedm-result"):
                gr.HTML("<h2>3. Result</h2>")
                output = gr.HTML(shown, elem_id="tedm-output")
        gr.HTML(pieces.render("foot", minutes=limits.KEPT // 60, too_large=limits.TOO_LARGE))
        # One at a time: they use all cores as it is. Everyone else waits in line.
        common: dict[str, Any] = {
            "concurrency_id": "work",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        segment = {"fn": polite(page.segment), "inputs": [key, method, size], "outputs": output, **common}

        def choose(name: str, before: str) -> tuple[str, None]:
            page.pictures.forget(before)
            if name not in page.examples:
                raise TedmError(NOTHING)
            return EXAMPLE + name, None

        def receive(path: str | None, before: str) -> tuple[str, None]:
            return page.receive(path, before), None

        quick = {"show_progress": "hidden", **common}
        gr.on([example.input], polite(choose), [example, key], [key, upload], **quick).success(**segment)
        read = gr.on([upload.upload], polite(receive), [upload, key], [key, example], **quick)
        read.success(**segment)
        read.failure(None, None, upload, js="() => null", **quick)  # so that another file can be given
        button.click(**segment)
        # Pressed by the page's script, so that this refusal looks and is read out like any other.
        too_large = gr.Button("The file is too large", visible="hidden", elem_id="tedm-too-large")
        too_large.click(polite(_too_large), show_progress="hidden", api_visibility="private")
    blocks.queue(max_size=limits.WAITING, api_open=False, default_concurrency_limit=1)
    script = _template("page.js").replace("MAX_BYTES", str(limits.MAX_BYTES))
    look = {"css": _template("page.css") + _thumbnails(page), "theme": _theme(), "js": script}
    return blocks, look


def _template(name: str) -> str:
    return resources.files("tedm.web").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _too_large() -> None:
    raise TedmError(f"The file is too large: {limits.TOO_LARGE}.")


def _path_of(payload: Any) -> str | None:
    return None if payload is None else str(payload.path)


def _classes(models: Models) -> str:
    names = list(dict.fromkeys(name for model in models.values() for name in model.classes))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _thumbnails(page: Page) -> str:
    """Each example's picture, behind its name."""
    return "".join(
        f"#tedm-examples label:nth-of-type({i}){{--thumb:url({thumbnail(given)})}}\n"
        for i, given in enumerate(page.examples.values(), 1)
    )


def _theme() -> gr.themes.Base:
    # Fonts of the reader's own computer: nothing is fetched.
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
