"""What outlives the process: machines, their memory and the event history, in one directory."""
