"""rankray: preference datasets made and ranked by models, and diffusion models trained on them, on Ray.

Importing the package costs a millisecond: it imports nothing of its own. The work is in its modules, which are listed,
room by room, in docs/architecture.md.
"""

import os

if os.path.expanduser("~") == "~":  # no HOME, and a user whom nobody knows, as in a container
    # Ray Train cannot be imported so, and caches would be made in directories named "~". Container runtimes say "/":
    # what is then to be written there is refused by a line that names the variable to set.
    os.environ["HOME"] = "/"

__version__ = "0.1.0"
