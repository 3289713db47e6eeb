"""Prefect's API for one command: ``python prefect_api.py FD``, where FD is an inherited socket that listens.

It asks for the token of ``PREFECT_SERVER_API_AUTH_STRING``, and answers only what is addressed to this machine by name
(against DNS rebinding) and comes from no foreign page. It imports nothing of this project, so that it runs as a script,
whatever the working directory holds.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import uvicorn
from prefect.server.api.server import create_app
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]


class SameOriginOnly:
    """Refuses requests and web sockets that a page of another origin sends."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.origins = {f"http://{host}:{port}".encode() for host in HOSTS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = {value for name, value in scope.get("headers", []) if name == b"origin"}
        app: ASGIApp = self.app if origins <= self.origins else PlainTextResponse("foreign origin", status_code=403)
        await app(scope, receive, send)


def serve(listening: socket.socket) -> None:
    """Answer on ``listening`` until told to end; exit code 3 if it could not start."""
    guarded = SameOriginOnly(TrustedHostMiddleware(create_app(), HOSTS, www_redirect=False), listening.getsockname()[1])
    options = uvicorn.Config(guarded, lifespan="on", log_level="error", proxy_headers=False, server_header=False)
    server = uvicorn.Server(options)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
