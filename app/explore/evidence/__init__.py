"""How a violation is shown and replayed: the way to it, its operations, columns, tokens."""
