"""``python -m launcher.remote COMMAND ...``: the other end of `launcher.ssh`."""

import sys

from launcher.ssh import guard

sys.exit(guard(sys.argv[1:]))
