"""Scripts played: on a machine in this process or on a server, and answers compared or recorded."""
