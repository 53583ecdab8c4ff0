"""The shipped runtime: asyncio tasks perform the core's operations."""
