"""The shapes of bodies: what comes in is checked here, what goes out is described here for the schema.

No answer passes through these models: the runtime makes its shape, and tests hold the two together. What a field
means is told once for all shapes, in ``openapi.words``.
"""
