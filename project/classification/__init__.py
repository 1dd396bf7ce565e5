"""Image classification: a pretrained network with a new head."""
