"""scripts/train.py for tests with several processes.

A rank kills itself, once, at the `rank epoch batch` given by `KILL`, or fails at that given by `FAIL`.
`--strategy cpu_fsdp` is FSDP without a GPU: Lightning allows FSDP only on GPUs, but torch also on CPUs.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import torch
import train
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry
from torch.distributed.fsdp import FullyShardedDataParallel

from project.classification.model import ResNetClassifier
from project.cli import run

torch.set_num_threads(1)
step = ResNetClassifier.training_step


def watched(self, batch, batch_idx):
    if os.environ.get("KILL") == f"{self.global_rank} {self.current_epoch} {batch_idx}":
        flag = Path(os.environ["KILLED"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FAIL") == f"{self.global_rank} {self.current_epoch} {batch_idx}":
        raise ValueError("the error of this rank")
    return step(self, batch, batch_idx)


class CpuFSDP(FSDPStrategy):
    @property
    def root_device(self):
        return torch.device("cpu")

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=self.root_device, **self.kwargs)


StrategyRegistry.register("cpu_fsdp", CpuFSDP)
ResNetClassifier.training_step = watched
run(train.main)
