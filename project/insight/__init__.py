"""What the data and the model are like: knows features, labels and files, but no task."""

SIDE = 32  # of a thumbnail, in pixels
