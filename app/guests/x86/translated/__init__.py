"""Guest code at full speed: the only room that knows Unicorn."""
