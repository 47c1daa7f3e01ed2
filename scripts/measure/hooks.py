"""What scripts/hooks does after the build; see there."""

import sys

from documents import table
from instructions import connect_each, of_a_message

CODE, CONNECTIONS, AGREE = 18, 1500, 0.005

handlers, service = (of_a_message(program, (), CONNECTIONS, 1, AGREE, talk=connect_each(CODE)) for program in sys.argv[1:3])
rows = [[f"{handlers:.0f}", f"{service:.0f}", f"{(service - handlers) / 2:.0f}"]]
print("\n".join(table(["handlers only", "with a service", "for each of two hooks"], rows)))
