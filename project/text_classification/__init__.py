"""Text classification: a pretrained encoder of the BERT family with a new head."""
