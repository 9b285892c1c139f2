"""`python -m ptsa_serve` is `ptsa`."""

from ptsa_serve.cli import main

if __name__ == "__main__":
    main()
