"""The image's health check: does this container's node answer ``/health``? Exits 0 if so, else 1.

Without an argument it asks where the container's first process listens: a worker on LOOMGATE_WORKER_PORT, anything
else on LOOMGATE_PORT. A path as argument (``/ready``) is asked in place of ``/health``.
"""

import http.client
import os
import sys
from pathlib import Path

_SECONDS = 2.0


def port() -> int:
    """Where the node of this container listens."""
    words = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    name, default = ("LOOMGATE_WORKER_PORT", 8788) if b"worker" in words else ("LOOMGATE_PORT", 8787)
    return int(os.environ.get(name) or default)


def main(path: str = "/health") -> int:
    """Asks once."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port(), timeout=_SECONDS)
        connection.request("GET", path)
        status = connection.getresponse().status
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(status)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
