"""Imported by the fork server of the data workers, first thing: signals of a notice reach all processes of a rank's group, and
where the fork server dies of one, its workers follow, though the training process still needs them for some steps."""

import signal

for _name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, _name), signal.SIG_IGN)
