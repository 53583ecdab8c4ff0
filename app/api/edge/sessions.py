"""The bearer token, and browser sessions that are got for a one-time code.

A browser cannot send a bearer token with an event stream, and a token in a URL ends in logs. So the server
prints a URL with a code in its fragment; the page sends the code once and gets a cookie for it.
"""

from __future__ import annotations

import hmac
import secrets

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

COOKIE = "kickstand_session"
MAX_SESSIONS = 1_000


class Sessions:
    """Who is let in. Without a token everybody is."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._codes: list[str] = []
        self._sessions: list[str] = []

    @property
    def required(self) -> bool:
        """Requests need the token or a session."""
        return self._token is not None

    def code(self) -> str:
        """Make a code that can be exchanged for a session once."""
        self._codes.append(secrets.token_urlsafe(32))
        return self._codes[-1]

    def exchange(self, code: str) -> str | None:
        """Return a new session for a code, or None if it is wrong or used up. The oldest session makes room."""
        found = next((known for known in self._codes if _equal(known, code)), None)
        if found is None:
            return None
        self._codes.remove(found)
        self._sessions = [*self._sessions[1 - MAX_SESSIONS :], secrets.token_urlsafe(32)]
        return self._sessions[-1]

    def admits(self, headers: Headers) -> bool:
        """The request carries the token, or the cookie of a session."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._token is not None and _equal(self._token, given.strip()):
            return True
        session = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return any(_equal(known, session) for known in self._sessions)


def _equal(known: str, given: str) -> bool:
    """Compare without telling by the time taken how much of it is right."""
    return hmac.compare_digest(known.encode(), given.encode(errors="surrogatepass"))
