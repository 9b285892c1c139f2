"""How the trained part of the room teacher is made: views of labelled photos, what networks see in them, heads."""
