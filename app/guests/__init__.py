"""Guest engines: what executes a vCPU's instructions behind ``app.core.engine.Guest``."""
