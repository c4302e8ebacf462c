"""What every room may use, and no word of what the project is about."""

import logging

logging.getLogger("coview").addHandler(logging.NullHandler())  # silent unless somebody listens
