"""An S3 server of moto's, as a process of its own, that checks signatures and fails on demand.

    python s3_server.py KEY SECRET        prints its port

moto takes any signature, and may interleave the check of a condition with the writing of another request.
Amazon does neither, so both are mended here. `POST /-/refuse?after=3&status=503` lets three more PUT pass
and refuses the others, until `POST /-/accept`. `GET /-/log` gives the requests seen, one a line.
"""

import hashlib
import hmac
import sys
import threading
from urllib.parse import parse_qs, quote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

KEY, SECRET = sys.argv[1:3]


def refusal(code: str, status: int) -> Response:
    # As Amazon's, with what a client must not print: what was signed, and by whom.
    text = (
        f"<Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId><Signed>{SECRET}</Signed></Error>"
    )
    return Response(text, status, content_type="application/xml")


def is_signed(request: Request) -> bool:
    """Whether a request is signed with KEY and SECRET (AWS Signature Version 4)."""
    kind, _, fields = request.headers.get("Authorization", "").partition(" ")
    if kind != "AWS4-HMAC-SHA256":
        return False
    given = dict(field.strip().split("=", 1) for field in fields.split(","))
    key, *scope = given["Credential"].split("/")
    signed = given["SignedHeaders"].split(";")
    query = sorted(parse_qs(request.query_string.decode(), keep_blank_values=True).items())
    canonical = "\n".join(
        [
            request.method,
            quote(request.path, safe="/-_.~"),
            "&".join(f"{quote(k, safe='-_.~')}={quote(v[0], safe='-_.~')}" for k, v in query),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in signed),
            "",
            given["SignedHeaders"],
            request.headers["x-amz-content-sha256"],
        ]
    )
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join([kind, request.headers["x-amz-date"], "/".join(scope), hashed])
    signature = f"AWS4{SECRET}".encode()
    for part in (*scope, text):
        signature = hmac.digest(signature, part.encode(), "sha256")
    return key == KEY and hmac.compare_digest(signature.hex(), given["Signature"])


class Server:
    """The application: control, signatures, faults, then moto."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.writing = threading.Lock()
        self.log: list[str] = []
        self.left, self.status = -1, 503

    def __call__(self, environ, start_response):
        request = Request(environ)
        if request.path.startswith("/-/"):
            return self.control(request)(environ, start_response)
        extent = request.headers.get("Range", "")
        self.log.append(f"{request.method} {request.path} {extent}")
        if not is_signed(request):
            return refusal("SignatureDoesNotMatch", 403)(environ, start_response)
        if request.method != "PUT":
            return self.moto(environ, start_response)
        with self.writing:
            if self.left == 0:
                code = "SlowDown" if self.status == 503 else "QuotaExceeded"
                return refusal(code, self.status)(environ, start_response)
            self.left -= self.left > 0
            return self.moto(environ, start_response)

    def control(self, request: Request) -> Response:
        if request.path == "/-/log":
            return Response("\n".join(self.log))
        self.log.clear()
        self.left = int(request.args.get("after", -1))
        self.status = int(request.args.get("status", 503))
        return Response("")


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_):
        pass


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, Server(), threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()
