"""What makes the core go on: asyncio tasks, and the clock of its timers."""
