"""The language of ioctl scripts: values, operations, files."""
