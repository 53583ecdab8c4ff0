"""The recorded past of a VM as files that other tools open: a writer per format, pure functions of a ``Recording``.

``chrome`` for chrome://tracing and speedscope, ``ftrace`` for trace-cmd and kernelshark, ``perfetto`` for
ui.perfetto.dev, ``events`` for whoever reads the streams.
The last format, a script that replays, is written by ``kickstand.scripts.export``.
"""
