"""What the command line runs: the client commands, the demo, the doctor, the program of `exec`."""
