"""When a guest runs: a first look at once, then slices on the event loop or turns on its guest thread, by shares."""
