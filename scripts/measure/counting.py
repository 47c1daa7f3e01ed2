"""What scripts/counting does after the builds; see there."""

import sys, time

from documents import table
from instructions import of_a_message

COUNTED, UNCOUNTED = sys.argv[1:3]
# Name, messages in one read, how many of them.
WAYS = [("event loop alone, one at a time", 1, 4000), ("event loop alone, 16 at a time", 16, 64000)]
# Counting is less than a hundredth of what a message costs.
AGREE = 0.0005

rows = []
for name, together, messages in WAYS:
    begun = time.monotonic()
    with_it, without = (of_a_message(program, (), messages, together, AGREE, counts)
                        for program, counts in ((COUNTED, True), (UNCOUNTED, False)))
    share = 100 * (with_it - without) / with_it
    rows.append([name, f"{with_it:.1f}", f"{without:.1f}", f"{with_it - without:.1f} ({share:.1f} %)"])
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
print("\n".join(table(["a message of 64 bytes", "counted", "not counted", "counting"], rows)))
