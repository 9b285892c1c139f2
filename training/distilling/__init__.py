"""Teachers, and what a student has to predict of them."""
