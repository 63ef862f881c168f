"""What ends a command at a signal, told from what code of others raises."""

from __future__ import annotations

import os
import signal

AT_ONCE = os._exit  # ends the process here and now; as it is before code of others runs


class Interrupted(KeyboardInterrupt):
    """A person pressed Ctrl-C; the plain one may as well be what somebody's code raises."""


class Terminated(BaseException):
    """TERM arrived: everything on the way out is put in order, as at Ctrl-C."""


def by_a_person(error: BaseException) -> bool:
    """Whether a person ends this process by a signal, or its own code a generator, and no code of others does.

    A plain KeyboardInterrupt may be a person's only where Python's own handler of Ctrl-C is in place.
    """
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, (Interrupted, Terminated, GeneratorExit))
