"""One question a file; each answer is a JSON file with the conditions it was measured under."""
