"""What a model costs, and what there is to choose from, before anything is trained."""
