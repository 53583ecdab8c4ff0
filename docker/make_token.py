"""Make the token that the containers share, unless it is there: one file that only its owner can read."""

import os
import secrets
import sys

try:
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
except FileExistsError:
    print(f"{sys.argv[1]} is there already")
else:
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    print(f"made {sys.argv[1]}")
