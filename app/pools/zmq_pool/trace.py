"""What a leased socket has been through since its checkout, as bits; 0 is "as new"."""

SENT = 1
"""The last message went out."""
RECEIVED = 2
"""The last message came in."""
MORE_OUT = 4
"""Frames were sent of a message that is not complete."""
MORE_IN = 8
"""Frames are left of a message that was received."""
RETIMED = 16
"""The time limits were set, which are restored."""
CHANGED = 32
"""Other options or connections than the configuration names, or closed."""

ALONE_AT = 1
"""Where a REQ's trace says whether its lessee is the thread that had the last lease, too.

If not, threads compete for the interpreter's lock, and a send keeps it; one that is alone can let go of it at no cost,
which is the cheaper call."""
