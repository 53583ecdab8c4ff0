"""How the interrupt controllers are joined to vCPUs and to what guests access."""
