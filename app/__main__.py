"""``python -m app`` is ``kickstand``."""

from app.cli import main

if __name__ == "__main__":
    main()
