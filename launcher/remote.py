"""``python -m launcher.remote COMMAND ...``: the other end of `launcher.ssh`."""

import sys

from launcher.ssh import guard

if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
