"""Ignores termination signals. The fork server of the data workers imports this module first.

A signal that announces a preemption reaches all processes of a rank's process group. If the fork server died of it, its
workers would follow, although the training process needs them for some more steps.
"""

import signal

for _name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, _name), signal.SIG_IGN)
