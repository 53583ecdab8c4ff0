"""How an ioctl is declared: found by its number, given its arguments, recorded, and kept."""
