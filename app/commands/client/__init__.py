"""The client commands of ``kickstand``: equal to the API, and none of them loads the server."""
