"""The client: every call of the control plane, sync and async, over httpx.

``Client`` and ``AsyncClient`` have the same methods (``calls``); those of the second are awaited. Answers are the JSON
objects of the API. A failure raises ``KickstandError`` with the problem the server sent.
"""

from kickstand.client.calls import Json, region
from kickstand.client.clients import DEFAULT_URL, AsyncClient, Client, KickstandError

__all__ = ["DEFAULT_URL", "AsyncClient", "Client", "Json", "KickstandError", "region"]
