"""The ioctls of a machine, by what they concern; each is declared on the method that performs it."""
