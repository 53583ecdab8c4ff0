"""HEAD on everything that takes GET: the same head, without the body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEAD = "kickstand.head"  # in the scope of such a request: a GET that changes something must not


class Head:
    """Performs a HEAD as the GET, sends what comes before the body, and lets a stream believe that its reader left."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = False

        async def left() -> Message:
            return {"type": "http.disconnect"} if answered else await receive()

        async def bare(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                await send(message)
                answered = True
                await send({"type": "http.response.body", "body": b""})

        await self.app({**scope, "method": "GET", HEAD: True}, left, bare)
