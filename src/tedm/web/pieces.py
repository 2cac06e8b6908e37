"""Pieces of the page, as HTML."""

import functools
from typing import Any

import jinja2


def render(name: str, **values: Any) -> str:
    """A piece, by its name, with some values, of which none is taken for HTML."""
    # What the browser's templates would take for their own signs is written otherwise.
    return (
        _pieces()
        .get_template(f"{name}.html.jinja")
        .render(**values)
        .replace("$", "&#36;")
        .replace("{{", "&#123;{")
    )


@functools.cache
def _pieces() -> jinja2.Environment:
    loader = jinja2.PackageLoader("tedm.web")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
