"""An exported model, tested as a checkpoint is."""

import torch
from torch import Tensor

from project.exported import Exported
from project.scoring import Scored


class ExportedClassifier(Scored):
    """An exported model, so that it is evaluated as a checkpoint is."""

    def __init__(self, exported: Exported) -> None:
        super().__init__(exported.class_names)
        self.preprocessing = exported.preprocessing
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 `(B, num_classes)`, of images, uint8 `(B, 3, S, S)`, on the CPU."""
        probabilities = torch.from_numpy(self.exported(images.permute(0, 2, 3, 1).contiguous().numpy()))
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()  # whose softmax they are
