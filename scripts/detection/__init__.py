"""Scripts for object detection."""
