"""A feature store's place: a prefix in a bucket, behind the S3 protocol.

Where the server is and who asks comes from where Amazon's own tools take it (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_PROFILE, …), never from this project's settings. No text of the client library or of
the server gets into a message, only codes: such texts may hold what must not be shown.

There are no locks in a bucket. What several processes change is replaced under the condition that it still
is what was read (If-Match, If-None-Match).
"""

import getpass
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tedm.errors import TedmError
from tedm.features.place import ChangedError, Document

URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>[A-Za-z0-9_.=/-]+)")
ATTEMPTS = 6  # of a request, with pauses that grow to 20 s, unless AWS_MAX_ATTEMPTS says otherwise
READS = 3  # attempts to read an answer to its end, which the client library does not repeat by itself
GAP = 1 << 16  # bytes between two parts that are fetched rather than asked around
PART = 1 << 23  # bytes of one request of several in parallel
REQUESTS = 8  # in parallel
MADE_BY = "made-by"  # metadata of an object: who wrote it
DELETED_AT_ONCE = 1000  # objects, as the protocol allows

DENIED = {
    *("AccessDenied", "403", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("InvalidToken", "TokenRefreshRequired", "AuthFailure", "RequestTimeTooSkewed", "Unauthorized"),
}
CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
ABSENT = {"NoSuchKey", "404", "NotFound"}


class Bucket:
    """Implements `tedm.features.places.Place` on the S3 protocol.

    Usable by several threads and, also after a fork, by several processes.
    """

    def __init__(self, url: str) -> None:
        match = URL.fullmatch(url.rstrip("/"))
        if match is None or any(part in ("", ".", "..") for part in match["prefix"].split("/")):
            if "@" in url:
                url = "s3://…@…"
            raise TedmError(
                f"{url}: not an address of a feature store in object storage; expected"
                " s3://bucket/prefix of letters, digits, '-', '_', '.', '='.\n  Credentials and server"
                " come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, …"
            )
        try:
            import boto3  # noqa: F401
        except ImportError:
            raise TedmError(f"{url}: object storage needs boto3:  pip install 'tedm[s3]'") from None
        self.url, self.bucket, self.prefix = match[0], match["bucket"], match["prefix"]
        self._made: tuple[int, Any] | None = None
        self._making = threading.Lock()

    def __str__(self) -> str:
        return self.url

    @property
    def directory(self) -> Path | None:
        return None

    @property
    def client(self) -> Any:
        """The library's client; a new one in each process, since connections do not survive a fork."""
        with self._making:
            if self._made is None or self._made[0] != os.getpid():
                self._made = os.getpid(), _client()
            return self._made[1]

    def key(self, name: str) -> str:
        """The object of a file; refuses what lies outside the store."""
        if name.startswith("/") or ".." in name.split("/"):
            raise TedmError(f"{name!r} lies outside the feature store {self}")
        return f"{self.prefix}/{name}" if name else self.prefix

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    def exists(self) -> bool:
        return bool(self._list("", MaxKeys=1).get("KeyCount"))

    def get(self, name: str, largest: int) -> Document | None:
        try:
            answer, content = self.fetch(name, f"bytes=0-{largest}")
        except FileNotFoundError:
            return None
        if len(content) > largest:
            raise TedmError(f"{self}/{name}: is larger than any metadata of a feature store; not read")
        return Document(content, answer.get("ETag", ""))

    @contextmanager
    def open(self, name: str) -> Iterator["_Object"]:
        yield _Object(self, name)

    def fetch(self, name: str, extent: str) -> tuple[dict[str, Any], bytes]:
        """Part of an object and what came with it; b"" where that part lies behind its end."""
        for _ in range(READS):
            try:
                with self.explained(name):
                    try:
                        answer = self.client.get_object(
                            Bucket=self.bucket, Key=self.key(name), Range=extent
                        )
                    except self.client.exceptions.ClientError as error:
                        if _code(error) in ("InvalidRange", "416"):
                            return {}, b""
                        raise
                    return answer, answer["Body"].read()
            except _UnreadError:
                continue
        raise TedmError(f"{self}/{name}: the connection broke {READS} times while it was read; try again")

    def size(self, name: str) -> int:
        with self.explained(name):
            try:
                answer = self.client.head_object(Bucket=self.bucket, Key=self.key(name))
            except self.client.exceptions.ClientError as error:
                if _code(error) in ABSENT:
                    return 0
                raise
        return int(answer["ContentLength"])

    def children(self, name: str) -> list[str]:
        folder = f"{self.key(name)}/"
        names = set()
        for page in self._pages(name, Delimiter="/"):
            names |= {prefix["Prefix"].rstrip("/") for prefix in page.get("CommonPrefixes", [])}
            names |= {entry["Key"] for entry in page.get("Contents", [])}
        found = (full.removeprefix(folder) for full in names)
        return sorted(child for child in found if child and not child.startswith("."))

    def sizes(self, name: str) -> dict[str, int]:
        return {file: entry["Size"] for file, entry in self._entries(name)}

    def made(self, name: str) -> tuple[str, datetime] | None:
        newest = max(self._entries(name), key=lambda found: found[1]["LastModified"], default=None)
        if newest is None:
            return None
        with self.explained(name):
            said = self.client.head_object(Bucket=self.bucket, Key=newest[1]["Key"]).get("Metadata", {})
        return unquote(said.get(MADE_BY, "")), newest[1]["LastModified"]

    def _entries(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = f"{self.key(name)}/"
        for page in self._pages(name):
            for entry in page.get("Contents", []):
                if entry["Key"] != folder:
                    yield entry["Key"].removeprefix(folder), entry

    def _pages(self, name: str, **how: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._list(name, **how, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _list(self, name: str, **how: Any) -> dict[str, Any]:
        with self.explained(name):
            prefix = f"{self.key(name)}/"
            page: dict[str, Any] = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **how)
        return page

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def put(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        content = bytearray()
        for part in parts:
            content += part
        self._put(name, content)

    def swap(self, name: str, before: Document | None, content: bytes) -> None:
        condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.version}
        self._put(name, content, **condition)

    def _put(self, name: str, content: bytes | bytearray, **condition: str) -> None:
        with self.explained(name):
            try:
                # One request: an object is there whole or not at all.
                # A server knows accounts at best; who it was is said beside the bytes, not in them.
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key(name),
                    Body=content,
                    Metadata={MADE_BY: quote(_user())},
                    **condition,
                )
            except self.client.exceptions.ClientError as error:
                gone = "IfMatch" in condition and _code(error) in ABSENT
                if condition and (gone or _code(error) in CHANGED):
                    raise ChangedError(name) from None
                raise

    def remove(self, name: str) -> None:
        below = [f"{name}/{file}" if name else file for file in self.sizes(name)]
        metadata = f"{name}/zarr.json".lstrip("/")
        first = [file for file in (name, metadata) if file]
        steps = range(0, len(below), DELETED_AT_ONCE)
        for some in (first, *(below[i : i + DELETED_AT_ONCE] for i in steps)):
            with self.explained(name):
                objects = [{"Key": self.key(file)} for file in some]
                answer = self.client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
                )
            if answer.get("Errors"):
                raise self._refusal(str(answer["Errors"][0].get("Code")), name)

    def clear_litter(self, name: str) -> None:
        """Nothing to do: an object that was not written to its end is not there."""

    # ── others ──────────────────────────────────────────────────────────────────────────────────

    def alone(self, what: str, label: str) -> AbstractContextManager[None]:
        del what, label
        return nullcontext()

    def refuse_others(self, what: str, besides: str) -> None:
        """Nothing to do: two that extract the same write the same."""

    @contextmanager
    def explained(self, name: str = "") -> Iterator[None]:
        """Turn refusals into TedmErrors."""
        from botocore import exceptions as refused

        try:
            yield
        except refused.ClientError as error:
            code = _code(error)
            if code in ABSENT:
                raise FileNotFoundError(f"{self}/{name}") from None
            raise self._refusal(code, name) from None
        except (refused.ResponseStreamingError, refused.IncompleteReadError):
            raise _UnreadError from None
        except (refused.NoCredentialsError, refused.PartialCredentialsError):
            raise TedmError(
                f"{self}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
                " AWS_PROFILE"
            ) from None
        except (refused.HTTPClientError, refused.ConnectionError):
            raise TedmError(
                f"{self}: {_server()} cannot be reached. Check AWS_ENDPOINT_URL and the network; what was"
                " complete is kept, and the same command goes on from there."
            ) from None
        except refused.BotoCoreError as error:
            raise TedmError(
                f"{self}: the settings of the environment (AWS_…) cannot be used ({type(error).__name__})"
            ) from None

    def _refusal(self, code: str, name: str) -> TedmError:
        if code == "NoSuchBucket":
            return TedmError(f"{self}: there is no bucket {self.bucket} at {_server()}; make it first")
        if code in DENIED:
            return TedmError(
                f"{self}: {_server()} refuses access ({code}). Check AWS_ACCESS_KEY_ID,"
                " AWS_SECRET_ACCESS_KEY and the permissions on the bucket"
            )
        return TedmError(
            f"{self}/{name}: {_server()} refuses this ({code}). What was complete is kept: the same command"
            " goes on from there."
        )


class _Object:
    """Implements `tedm.features.places.Source`."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket, self.name = bucket, name
        self._size: int | None = None
        self._fetched: dict[int, bytes] = {}  # by offset

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = self.bucket.size(self.name)
        return self._size

    def tail(self, length: int) -> bytes:
        answer, content = self.bucket.fetch(self.name, f"bytes=-{length}")
        self._size = int(answer.get("ContentRange", "/0").rpartition("/")[2])
        return content

    def expect(self, parts: Sequence[tuple[int, int]]) -> None:
        """Fetch parts together: those that lie close in one request, and several requests at once."""
        spans: list[tuple[int, int]] = []
        for offset, length in sorted(parts):
            start, stop = spans[-1] if spans else (0, 0)
            if spans and offset <= stop + GAP and offset + length - start <= PART:
                spans[-1] = start, max(stop, offset + length)
            else:
                spans.append((offset, offset + length))

        def fetch(span: tuple[int, int]) -> bytes:
            return self.bucket.fetch(self.name, f"bytes={span[0]}-{span[1] - 1}")[1]

        with ThreadPoolExecutor(min(REQUESTS, max(len(spans), 1)), "fetch") as pool:
            starts = (start for start, _ in spans)
            self._fetched = dict(zip(starts, pool.map(fetch, spans), strict=True))

    def read_into(self, offset: int, buffers: Sequence[memoryview | bytearray]) -> int:
        start = max((start for start in self._fetched if start <= offset), default=0)
        content = memoryview(self._fetched.get(start, b""))[offset - start :]
        done = 0
        for buffer in buffers:
            part = content[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done


class _UnreadError(Exception):
    """An answer broke off."""


def _client() -> Any:
    import boto3
    from botocore.config import Config

    retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    # Names of buckets are made part of the server's name at Amazon only; others seldom know such names.
    style = {"addressing_style": "path"} if _endpoint() else {}
    config = Config(retries=retries, s3=style, connect_timeout=10, max_pool_connections=2 * REQUESTS)
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError:  # whose text holds the address, which may hold a password
        raise TedmError(f"AWS_ENDPOINT_URL: {_server()} is not an address of a server") from None


def _user() -> str:
    """The name of who runs this; "" where a container knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _server() -> str:
    """The server's address without what else an address may hold."""
    parts = urlsplit(_endpoint())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "the server"


def _code(error: Any) -> str:
    """What a server's refusal is called, and nothing else that it says."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"[A-Za-z0-9.]{1,64}", code) else "no code"
