"""A TaskTree as text: stages from left to right, a box for each group, lines where groups part.

    stage 1        stage 2
    ┌───────┐     ┌───────┐
    │ depth ├──┬──┤ depth │
    ...
"""
