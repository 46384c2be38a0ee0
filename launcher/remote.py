"""``python -m bellwether.launcher.remote COMMAND ...``: the other end of `bellwether.launcher.ssh`."""

import sys

from bellwether.launcher.ssh import guard

if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
