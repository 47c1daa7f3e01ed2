"""One client that fills its socket with echoes and empties it again: scripts/filling.

    filling.py PORT ROUNDS STATUS-COMMAND...
"""

import json
import socket
import struct
import subprocess
import sys
import time
import zlib

BODY = bytes(65527)
FRAME = struct.pack(">HHI", 8 + len(BODY), 1, zlib.crc32(BODY)) + BODY
# The peer's acknowledgement and the event loop's EPOLLOUT take a moment.
PAUSE = 0.05
DEADLINE = 10


def totals(command):
    status = subprocess.run(command, check=True, capture_output=True).stdout
    return json.loads(status)["totals"]


def main():
    port, rounds, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(DEADLINE)
    sent = read = 0
    for number in range(1, rounds + 1):
        before = totals(command)
        echoes = 0
        while True:
            client.sendall(FRAME)
            sent, echoes = sent + 1, echoes + 1
            give_up = time.monotonic() + DEADLINE
            while True:
                now = totals(command)
                is_blocked = now["sends_blocked"] > before["sends_blocked"]
                if is_blocked or now["frames_sent"] == sent:
                    break
                assert time.monotonic() < give_up, f"neither sent nor blocked: {now}"
            if is_blocked:
                break
        held = now["bytes_sent"] - read * len(FRAME)
        replies = 0
        while totals(command)["send_calls"] == now["send_calls"]:
            left = len(FRAME)
            while left:
                left -= len(client.recv(left))
            read, replies = read + 1, replies + 1
            time.sleep(PAUSE)
        print(
            f"  round {number}: blocked at echo {echoes}, {held} bytes with the kernel;"
            f" the server sends again after {replies} replies were read",
            flush=True,
        )


main()
