"""Object detection: a pretrained ResNet with a feature pyramid and new heads for boxes."""
