"""How far a map is from its label: losses to train by, figures to judge by."""
