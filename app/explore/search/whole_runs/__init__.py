"""Properties of whole runs, looked for once all states are found: loops, EINTR in a row, stretches, lost wake-ups."""
