"""Image classification: a ResNet with a new head."""
