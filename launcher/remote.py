"""``python -m bellwether.launcher.remote COMMAND ...``: runs on each host that `bellwether.launcher.ssh` connects to."""

import sys

from bellwether.launcher import console
from bellwether.launcher.ssh import supervise

if __name__ == "__main__":
    console.setup()
    sys.exit(supervise(sys.argv[1:]))
