"""What KVM does itself: single instructions with their exits, events, and what waits for userspace."""
