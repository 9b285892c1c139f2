"""`python -m ptsa_serve` is `ptsa`."""

import sys

# Python puts the current folder before all others, so a random.py or http.py in it would run in place of Python's own;
# the folder of this file (`python ptsa_serve`) has an http of its own. Here and not in a function: before all imports.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

from ptsa_serve.cli import main

if __name__ == "__main__":
    main(prog_name="ptsa")
