"""One question a file; each answer is a JSON file with the conditions it was measured under."""

import ptsa_serve  # noqa: F401  switches off usage reports, so before any library
