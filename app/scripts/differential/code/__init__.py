"""The machine code that generated guests are made of: a narrow table, and a wide one with its own encoder."""
