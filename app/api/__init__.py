"""The control plane: routers that translate HTTP to calls of the runtime and decide nothing."""
