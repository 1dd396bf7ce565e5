"""Load samples in an order that is the same for any number of processes and workers, and after any interruption."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from project import num_cores
from project.lightning_internals import batches_done, epoch_is_over

Arrange = Callable[[Tensor, torch.Generator], Tensor]


class RankAndSeed(NamedTuple):
    """What determines the order of a process's samples, besides their number and the epoch."""

    rank: int
    world_size: int
    seed: int


class ResumableData(LightningDataModule):
    """A data module that resumes training after the last batch seen, with the random numbers of an uninterrupted run.

    A subclass creates its training loader with `train_loader` and all others with `eval_loader`.

    Args:
        batch_size: Samples per step and device.
        num_workers: Data workers per device; by default, the cores divided by the devices, but at most 8.
    """

    UNIT: ClassVar[str] = "images"  # what the samples are, in messages and in the name of the speed
    ORDER: ClassVar[tuple[str, ...]] = ()  # options on which the order of the samples depends, besides the seed
    samples: dict[str, list[tuple[str, str]]]  # files and their class names by split, if there are files

    def __init__(self, batch_size: int, num_workers: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size  # the name that Lightning's batch-size finder looks for
        self.num_workers = num_workers
        self.resumed: dict[str, Any] = {"epoch": 0, "batches_done": 0, "images_a_step": 0}

    @property
    def fingerprints(self) -> dict[str, Tensor]:
        """By split, a number for each of its `samples`, int64 `(N,)`, by which a resumed run notices other ones."""
        return {}

    @property
    def rank_and_seed(self) -> RankAndSeed:
        """Rank, number of processes and seed, for this process."""
        if self.trainer is None:
            return RankAndSeed(rank=0, world_size=1, seed=0)
        # set by seed_everything, also for the processes that Lightning starts
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        return RankAndSeed(self.trainer.global_rank, self.trainer.world_size, seed)

    @property
    def global_batch_size(self) -> int:
        """Samples per step, over all devices."""
        return self.batch_size * self.rank_and_seed.world_size

    def train_loader(
        self,
        dataset: Dataset,
        weights: np.ndarray | None = None,
        arrange: Arrange | None = None,
        single: bool = False,
        **options: Any,
    ) -> DataLoader:
        """A loader of the training samples, in a new order each epoch; it resumes where an interrupted run stopped.

        Args:
            dataset: Its items are requested as `EpochSampler` yields them.
            weights: See `EpochSampler`.
            arrange: Likewise.
            single: Whether a last batch may be of one sample; by default it is left out: BatchNorm cannot train on it.
            options: See `_loader`.
        """
        sampler = self._sampler_class(
            len(dataset),  # type: ignore[arg-type]
            shuffle=True,
            weights=weights,
            arrange=arrange,
            **self.rank_and_seed._asdict(),
        )
        sampler.resume(self.resumed["epoch"], self.resumed["batches_done"] * self.batch_size)
        drop_last = not single and self.batch_size > 1 and len(sampler) % self.batch_size == 1
        return self._loader(dataset, sampler, drop_last=drop_last, **options)

    def eval_loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        """A loader of all samples in order, divided among the processes, with padding; options as for `_loader`."""
        sampler = self._sampler_class(len(dataset), shuffle=False, **self.rank_and_seed._asdict())  # type: ignore[arg-type]
        return self._loader(dataset, sampler, **options)

    @property
    def _sampler_class(self) -> "type[EpochSampler]":
        overfit = getattr(self.trainer, "overfit_batches", 0)  # which Lightning's annotations lack
        return FixedSampler if overfit else EpochSampler

    def _loader(
        self,
        dataset: Dataset,
        sampler: "EpochSampler",
        collate_fn: Callable[[Any], Any] | None = None,
        in_memory: bool = False,
        drop_last: bool = False,
    ) -> DataLoader:
        """A loader; for a data set in memory it has no worker processes."""
        trainer = self.trainer
        processes = 1 if trainer is None else trainer.num_devices
        if isinstance(getattr(trainer and trainer.strategy, "cluster_environment", None), SLURMEnvironment):
            processes = 1  # srun has given each process its own cores
        workers = default_workers(processes) if self.num_workers is None else self.num_workers
        workers = 0 if in_memory else workers
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=workers,
            pin_memory=trainer is not None and isinstance(trainer.accelerator, CUDAAccelerator),
            persistent_workers=workers > 0,
            drop_last=drop_last,
            worker_init_fn=set_up_worker,
        )

    def seed_step(self) -> None:
        """Seed torch for everything random in a training step from here on, such as dropout.

        This makes a step independent of those before it, so that a resumed run continues as if never interrupted.
        """
        assert self.trainer is not None
        position = (*self.rank_and_seed, self.trainer.current_epoch, batches_done(self.trainer))
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))

    def indices_of_batch(self, batch_idx: int) -> list[int]:
        """Indices of the training samples that this process sees as a batch of the current epoch."""
        assert self.trainer is not None and self.trainer.train_dataloader is not None
        indices, _ = self.trainer.train_dataloader.sampler.indices_of_rank(self.trainer.current_epoch)
        return indices[batch_idx * self.batch_size :][: self.batch_size].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Training progress, for the checkpoint: the completed epochs, the completed batches of the current one, and
        the fingerprints of the samples."""
        if self.trainer is None:
            return self.resumed
        epoch, done = self.trainer.current_epoch, batches_done(self.trainer)
        if epoch_is_over(self.trainer) or self.trainer.is_last_batch:
            epoch, done = epoch + 1, 0
        # The third name is kept from the first checkpoints; it means `global_batch_size`.
        progress = {"epoch": epoch, "batches_done": done, "images_a_step": self.global_batch_size}
        return {**progress, "samples": self.fingerprints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the loader, which Lightning creates before it restores its own progress."""
        self.resumed = state_dict


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield one process's part of each epoch: indices, each with a seed for what is random in the sample's transform.

    Both depend only on the seed and the epoch.

    Every process gets the same number of samples, so that none waits for another at the end. If the data does not
    divide evenly, shuffling repeats some samples; otherwise the rest is `PADDING`, which the metrics ignore, so that
    evaluation counts each sample once.

    Args:
        num_samples: Size of the data set.
        shuffle: Use a new order every epoch instead of the order of the data set.
        weights: If given, draw with replacement, with these relative probabilities, shape `(num_samples,)`.
        arrange: Brings the order of an epoch, that of all processes together, into another one, int64 `(num_samples,)`,
            with random numbers of the generator alone.
        rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the order and of the samples' seeds.
    """

    PADDING = -1

    def __init__(
        self,
        num_samples: int,
        *,
        shuffle: bool,
        weights: np.ndarray | None = None,
        arrange: Arrange | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.num_samples = num_samples
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights)
        self.arrange = arrange
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0
        self.resumed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def resume(self, epoch: int, num_done: int) -> None:
        """Start in `epoch`, after the `num_done` samples of it that this process saw before the interruption."""
        self.epoch = epoch
        self.resumed = (epoch, num_done)

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, num_done = self.resumed or (0, 0)
        start = num_done if epoch == self.epoch else 0
        items = torch.stack(self.indices_of_rank(self.epoch), dim=1)[start:]
        for some in items.split(4096):  # objects for all of them would take memory in the workers, too
            yield from map(tuple, some.tolist())

    def indices_of_rank(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Indices and seeds of an epoch for this process, each int64 `(len(self),)`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.weights is not None:
            order = torch.multinomial(self.weights, self.num_samples, replacement=True, generator=generator)
        elif self.shuffle:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        if self.arrange is not None:
            order = self.arrange(order, generator)
        missing = len(self) * self.world_size - self.num_samples
        again = order.repeat(self.world_size)[:missing]  # more than once if there are fewer samples than processes
        fill = again if self.shuffle else torch.full((missing,), self.PADDING)
        seeds = torch.randint(2**62, (self.num_samples + missing,), generator=generator)
        mine = slice(self.rank, None, self.world_size)
        return torch.cat([order, fill])[mine], seeds[mine]


def gather_in_order(trainer: Trainer, part: Tensor, num_samples: int) -> Tensor:
    """The rows of all processes for the samples that `eval_loader` has divided among them, on the CPU.

    Args:
        trainer: Provides the processes, all of which must call this.
        part: The rows of this process, `(M, …)` on its device, in the order of its loader.
        num_samples: Size of the data set.

    Returns:
        `(num_samples, …)`, in the order of the samples; less if the number of batches was limited.
    """
    if trainer.world_size == 1:
        return part[:num_samples].cpu()
    # Process r had the samples r, r + world_size, …: interleaving the processes restores the order, with padding last.
    gathered = trainer.strategy.all_gather(part)  # (world_size, M, …)
    return gathered.transpose(0, 1).flatten(0, 1)[:num_samples].cpu()


class FixedSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]
    """The same samples with the same seeds in every epoch, in mixed order: for `--overfit_batches`.

    Lightning replaces every sampler by a `SequentialSampler` then, except those of that type.
    """

    def indices_of_rank(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Those of the first epoch."""
        return super().indices_of_rank(0)


def set_up_worker(worker: int) -> None:
    """Keep a data worker from copying the memory of the main process, and from receiving its signals."""
    gc.freeze()  # the garbage collector writes to the objects that it inspects, which copies their pages
    # Ctrl-C, or a signal to the whole job, must not end a worker that the last step still needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def default_workers(processes: int = 1) -> int:
    """Number of data workers for each of `processes` training processes: one per available core, at most 8."""
    return min(8, num_cores() // processes)
