"""Image classification: a pretrained network with a new head."""

HEAD_START = "head_start.ckpt"  # the first best.ckpt, kept beside it for averages with what follows
