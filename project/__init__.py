"""Fine-tune a pretrained ResNet on a folder of images."""


class UserError(Exception):
    """Something the user can mend. The scripts print its text as one line, without a traceback, and exit with 1."""
