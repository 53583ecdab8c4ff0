"""The edge of the server: who may come in, how much they may bring, and how failures look."""
