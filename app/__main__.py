"""``python -m app`` is ``kickstand``."""

from app.cli import main

main()
