"""The state directory and its file: one writer, versions, room on the disk, what is damaged, what is forgotten."""
