"""The explorer: every interleaving of the shipped protocol code, searched by states."""
