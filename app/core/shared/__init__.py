"""Objects that threads share: requests and modes, the semaphore, what a VMM counts of its own ioctls."""
