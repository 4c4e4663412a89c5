"""rankray: preference datasets made and ranked by models, and diffusion models trained on them, on Ray.

Importing the package costs a millisecond: it imports nothing. The work is in its modules, which are listed,
room by room, in docs/architecture.md.
"""

__version__ = "0.1.0"
