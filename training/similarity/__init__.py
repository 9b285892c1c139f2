"""How alike the tasks' gradients are: measured on a frozen backbone, kept as JSON, drawn as heat maps."""
