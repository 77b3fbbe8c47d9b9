"""Notice that the machine at the other end of a TCP connection is gone without a word.

Without this a connection to it stays open for ever while it is idle, and for a quarter of an hour
with bytes on their way.
"""

import socket

# Long enough for a network that finds another path or a machine that moves to another host, short
# enough that a batch, and the worker that would send it, are not lost for longer than users wait.
# A process that computes or is stopped is not silent: its system confirms what comes all the same.
SILENCE = 20.0


def notice_silence(sock: socket.socket) -> None:
    """Let reading and writing fail when the other machine has confirmed nothing for so long.

    Args:
        sock: Connected, TCP.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": int(SILENCE / 2),  # for a connection with nothing on its way
        "TCP_KEEPINTVL": int(SILENCE / 4),
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": int(SILENCE * 1000),  # milliseconds, for one with something on its way
    }
    for name, value in options.items():
        if hasattr(socket, name):  # macOS has another name for the first, and not the last
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, value))
