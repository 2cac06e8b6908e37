"""Which place a path or URL names."""

from pathlib import Path

from tedm.errors import TedmError
from tedm.features.place import Place


def place_of(store: Path | str) -> Place:
    """The place that a path or URL names."""
    text = str(store)
    if text.startswith("s3://"):
        from tedm.features.bucket import Bucket

        return Bucket(text)
    if text.startswith("s3:/"):
        raise TedmError(f"{text}: give an address in object storage as text, s3://…, not as a Path")
    if "://" in text:
        scheme = text.split("://")[0]
        raise TedmError(f"{scheme}://…: feature stores lie in directories or at s3://bucket/prefix")
    from tedm.features.directory import Directory

    return Directory(Path(text))
