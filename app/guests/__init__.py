"""Guest engines: what executes a vCPU's instructions behind ``kickstand.core.engine.Guest``."""
