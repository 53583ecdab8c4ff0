"""The program's memory as guest memory: the same pages, or copies."""
