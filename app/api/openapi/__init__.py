"""The schema: what the framework derives, completed by what it does not know."""
