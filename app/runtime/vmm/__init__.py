"""The VMM of one VM as this server plays it: its process, its vCPU threads, its memory."""
