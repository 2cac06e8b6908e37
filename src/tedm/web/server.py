"""The web server of the page: where it listens, and how it ends."""

import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tedm.errors import TedmError
from tedm.progress import say
from tedm.web import incoming

if TYPE_CHECKING:
    from tedm.models import Models
    from tedm.web.pictures import Given

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def require() -> None:
    """Raise a TedmError unless Gradio is there; does not import it."""
    if importlib.util.find_spec("gradio") is None:
        raise TedmError("the web page needs Gradio: pip install 'tedm[web]'")


@contextmanager
def prepared(models: "Models", examples: Mapping[str, "Given"], host: str) -> Iterator[Any]:
    """The page as an ASGI application; its directory is gone afterwards.

    Args:
        models: to choose from.
        examples: images to try.
        host: where it will listen.
    """
    with incoming.directory() as folder:
        # Gradio reads these when it is imported or first used; it would call home otherwise.
        os.environ |= {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        import fastapi
        import gradio as gr

        from tedm.web import limits
        from tedm.web.app import Page, build
        from tedm.web.gate import Gate

        blocks, look = build(Page(models, examples, folder))
        blocks.state_session_capacity = limits.SESSIONS
        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        gr.mount_gradio_app(
            app,
            blocks,
            path="",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=limits.MAX_BYTES,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            **look,
        )
        blocks.has_launched = True  # else Gradio opens any file that a client names
        yield Gate(app, folder, LOOPBACK if is_loopback(host) else None)


def serve(models: "Models", examples: Mapping[str, "Given"], host: str, port: int) -> None:
    """Serve the page until somebody ends it.

    Raises:
        TedmError: the address cannot be used.
    """
    import uvicorn

    from tedm.web import limits

    # uvicorn hands the signal on when it has shut down; an exception lets the directory be removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        listening(host, port) as bound,
        prepared(models, examples, host) as app,
    ):
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            limit_concurrency=limits.CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"{len(models)} models on http://{shown}:{bound.getsockname()[1]}  (Ctrl+C ends it)")
        if not is_loopback(host):
            say("Everyone who reaches this computer can use it. There is no password.")
        uvicorn.Server(config).run([bound])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(128)
        except OSError as error:
            raise TedmError(
                f"{host}:{port}: cannot be used ({error.strerror}); try another --port"
            ) from None
        yield bound


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches it."""
    return host in LOOPBACK or host.startswith("127.")
