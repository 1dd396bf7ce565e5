"""The model: a pretrained encoder whose hidden states are pooled to one vector a text, and a new linear head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from project import INFINITY, UserError, check_ranges, shortest
from project.answers import check_finite
from project.backbones import Head
from project.checkpoint import Checkpoint, load_model, open_checkpoint
from project.metrics import EvalMetrics, Mean, most_probable
from project.optim import NO_DECAY, make_optimizers
from project.scoring import Scored
from project.text_classification.encoder import (
    MAX_LAYERS,
    checked_config,
    layer_of,
    load_encoder,
    make_encoder,
    tokenizer_of,
)
from project.text_classification.tokenizer import Tokenizer, by_length

PARTS = ("embeddings", *(f"layer {i + 1}" for i in range(MAX_LAYERS)), "head")


class TextClassifier(Scored):
    """An encoder of the BERT family with a new head: pooling, dropout and a linear layer for the given classes.

    The arguments before the `*` are set by the program; those after it are the options `--model.NAME`.

    Args:
        class_names: Names of the classes, in the order of the outputs. They are saved with the weights, like everything
            else that a reload needs.
        tokenizer_json: The text of the encoder's `tokenizer.json`.
        encoder_config: What `checked_config` returned.
        max_length: Tokens of a text; longer ones are cut.
        class_weights: Weights of the classes in the loss.
        net: The encoder with its weights, if the caller has built it already.
        encoder: An encoder of the BERT family: a folder with `config.json`, `tokenizer.json` and `model.safetensors`,
            or a repository of the Hugging Face Hub, downloaded once.
        weights: `DEFAULT`, those of the encoder; the path of a `.safetensors` file or of a checkpoint of this project;
            or `none` for random weights.
        pooling: What stands for a text: the mean of its tokens' hidden states, or the first one's.
        fine_tune: `full` trains all layers; `head` trains only the new head, on the frozen encoder's features.
        dropout: Probability of dropping a feature before the linear layer.
        lr: Peak learning rate of the head and, times `layer_decay`, of the last layer.
        layer_decay: Learning rate of each layer relative to that of the one above it (ULMFiT, arXiv 1801.06146).
        weight_decay: Applied to weight matrices only, never to norms and biases.
        warmup_ratio: Fraction of all steps in which the learning rate rises linearly, before it falls along a cosine.
        label_smoothing: Fraction of the target that is spread over all classes, in training.
        head_start: Linear probing before fine-tuning (LP-FT, arXiv 2202.10054): first fit the head on the features of
            the frozen encoder, see `project/text_classification/head_start.py`. By default if there are pretrained
            weights.

    Raises:
        UserError: An option is out of range; or the encoder cannot be obtained, or does not fit its weights.
    """

    TASK = "text classification"  # in checkpoints, of which those of other tasks are refused
    MONITOR = "val/top1"  # selects the best checkpoint, by default
    RANGES: ClassVar = {
        "dropout": (0, 1),
        "lr": (0, INFINITY),
        "layer_decay": (0, 1),
        "weight_decay": (0, INFINITY),
        "warmup_ratio": (0, 1),
        "label_smoothing": (0, 1),
    }
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "encoder": "an encoder of the BERT family: a folder, or a name of the Hugging Face Hub",
        "weights": "DEFAULT (the encoder's), a .safetensors file or a checkpoint, or none",
        "fine_tune": "full: all layers; head: only the new last one, which is much faster",
        "lr": "learning rate of the head",
    }
    REMOVED = ()  # options of older versions
    RENAMED: ClassVar[dict[str, dict[str, str]]] = {}  # values of older versions
    # Options that a resumed run cannot change; the last ones are in the state of its optimizer
    FIXED = ("encoder", "pooling", "fine_tune", "lr", "layer_decay", "weight_decay")
    GROUPS = tuple(part + kind for part in PARTS for kind in ("", NO_DECAY))  # of the optimizer's parameters

    class_weights: Tensor | None

    def __init__(
        self,
        class_names: list[str],
        tokenizer_json: str,
        encoder_config: dict[str, Any],
        max_length: int = 128,
        class_weights: list[float] | None = None,
        net: nn.Module | None = None,
        *,
        encoder: str = "sentence-transformers/all-MiniLM-L6-v2",
        weights: str = "DEFAULT",
        pooling: Literal["mean", "first"] = "mean",
        fine_tune: Literal["full", "head"] = "full",
        dropout: float = 0.1,
        lr: float = 5e-4,
        layer_decay: float = 0.8,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        label_smoothing: float = 0.1,
        head_start: bool | None = None,
    ) -> None:
        super().__init__(class_names)
        self.save_hyperparameters(ignore="net", logger=False)  # the tokenizer is no option; those are logged at the end
        self.check_options(**self.hparams)
        self.head_start = has_head_start(weights, head_start)
        self.config = checked_config(encoder_config)
        self.tokenizer = tokenizer_of(tokenizer_json, self.config)
        self.max_length = max_length
        self.net = encoder_with_weights(self.config, encoder, weights) if net is None else net
        self.head = Head(dropout, self.net.config.hidden_size, len(class_names))  # type: ignore[arg-type, union-attr]
        if self.frozen:
            self.net.requires_grad_(False)
        # By name, because FSDP flattens all parameters before the optimizer is created.
        self.decayed = {name for name, p in self.named_parameters() if p.ndim > 1 and name.endswith("weight")}
        loss_weights = None if class_weights is None else torch.tensor(class_weights)
        # Not persistent: the hyperparameters restore them
        self.register_buffer("class_weights", loss_weights, persistent=False)
        top1 = MulticlassAccuracy(len(class_names), average="micro", validate_args=False)
        self.train_metrics = cast(dict[str, Metric], nn.ModuleDict({"loss": Mean(), "top1": top1}))  # over an epoch
        self.val_metrics = EvalMetrics(len(class_names))

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Reject what `__init__` would, as far as possible without the encoder. Raises `UserError`."""
        check_ranges("model.", cls.RANGES, options)

    @classmethod
    def monitors(cls) -> dict[str, Literal["min", "max"]]:
        """The metrics that can select the best checkpoint, and whether they are to be small or large."""
        return {f"val/{name}": mode for name, mode in EvalMetrics.modes().items()}

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.hparams["fine_tune"] == "head"

    def describe(self) -> str:
        """One line for the log on what is trained."""
        h = self.hparams
        parameters = list(self.parameters())
        total, trained = (sum(p.numel() for p in ps) for ps in (parameters, [p for p in parameters if p.requires_grad]))
        start = {"none": "random weights", "DEFAULT": "its weights"}.get(h["weights"], shortest(h["weights"]))
        name = shortest(h["encoder"]) if Path(h["encoder"]).is_dir() else h["encoder"]
        size = f"{self.config['model_type']}, {num_layers(self.net)} layers"
        return f"{name} ({size}) from {start}: {trained / 1e6:.1f} M of {total / 1e6:.1f} M parameters are trained"

    def forward(self, inputs: dict[str, Tensor] | Tensor) -> Tensor:
        """Classify texts.

        Args:
            inputs: `input_ids` and `attention_mask`, int64 `(B, T)`; or the features of texts, `(B, F)`.

        Returns:
            Logits, float32 `(B, num_classes)`.
        """
        return self.head(inputs if isinstance(inputs, Tensor) else self.features(inputs)).float()

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the head gets for texts, `(B, F)`: the mean hidden state of their tokens, or the first one."""
        hidden = self.net(**inputs).last_hidden_state
        if self.hparams["pooling"] == "first":
            return hidden[:, 0]
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def training_step(self, batch: tuple[dict[str, Tensor] | Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss, a scalar, for a batch of texts or features with their labels, int64 `(B,)`."""
        inputs, labels = batch
        logits = self(inputs)
        loss = F.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.hparams["label_smoothing"]
        )
        mean_loss, top1 = self.train_metrics["loss"], self.train_metrics["top1"]
        mean_loss.update(loss.detach(), len(labels))
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("train/top1_step", top1(logits, labels))
        # `EpochLines` logs these two, before the checkpoint of the epoch is saved
        self.log("train/loss_epoch", mean_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train/top1_epoch", top1, on_step=False, on_epoch=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[dict[str, Tensor] | Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch of texts or features to the metrics; labels are int64 `(B,)`, with `IGNORE` for padding."""
        inputs, labels = batch
        self.val_metrics.update(self(inputs), labels)

    def on_validation_epoch_end(self) -> None:
        self.log_results("val", self.val_metrics)

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """The probabilities of texts, float32 `(N, num_classes)`, on the device and in the precision of the model.

        Args:
            texts: The texts; an empty list gives none.
            batch_size: Texts per step.

        Raises:
            UserError: What the model predicts is not a number.
        """
        self.eval()
        tokens = self.tokenizer.encode(texts, self.max_length)
        found = torch.empty(len(texts), len(self.class_names))
        for some in by_length(tokens, batch_size):
            batch = self.tokenizer.pad([tokens[i] for i in some])
            found[some] = self({name: part.to(self.device) for name, part in batch.items()}).softmax(dim=1).cpu()
        check_finite(found.numpy())
        return found

    def predict(self, texts: Sequence[str], top_k: int = 3, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify texts.

        Args:
            texts: The texts.
            top_k: Number of classes to name.
            batch_size: Texts per step.

        Returns:
            For each text its classes with their probabilities, the most probable first.

        Raises:
            UserError: What the model predicts is not a number.
        """
        values, classes = most_probable(self.probabilities(texts, batch_size), top_k)
        return [
            {self.class_names[i]: share for i, share in zip(indices, shares, strict=True)}
            for indices, shares in zip(classes.tolist(), values.tolist(), strict=True)
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        groups = self.param_groups(h["lr"], h["layer_decay"], h["weight_decay"])
        return make_optimizers(self, groups, "adamw", h["lr"], 0.0, "cosine", h["warmup_ratio"])

    def param_groups(self, lr: float, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups of parameters: by layer, each with and without weight decay. See `__init__`."""
        top = num_layers(self.net) + 1
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            depth = top if name.startswith("head.") else layer_of(name, top - 1)
            part = "head" if depth == top else PARTS[depth]
            decays = name in self.decayed
            rates = {"lr": lr * layer_decay ** (top - depth), "weight_decay": weight_decay if decays else 0.0}
            full_name = part if decays else f"{part}{NO_DECAY}"
            groups.setdefault(full_name, {"name": full_name, "params": [], **rates})["params"].append(parameter)
        return list(groups.values())

    def train(self, mode: bool = True) -> "TextClassifier":
        """Keep a frozen encoder in eval mode; otherwise its dropout would make every feature noisy."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store `weights` as `none`: a reload takes them from the checkpoint, and must not fetch the initial ones."""
        checkpoint["task"] = self.TASK
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "weights": "none"}


def encoder_with_weights(config: dict[str, Any], encoder: str, weights: str) -> nn.Module:
    """Build an encoder as the options `--model.encoder` and `--model.weights` ask for. Raises `UserError`."""
    net = make_encoder(config)
    if weights != "none":
        load_encoder(net, encoder, weights)
    return net


def num_layers(net: nn.Module) -> int:
    """The number of an encoder's layers."""
    return int(net.config.num_hidden_layers)  # type: ignore[arg-type, union-attr]


def load(checkpoint: str | Path = "best", default_root_dir: str | Path = ".") -> TextClassifier:
    """The trained model of a checkpoint, in eval mode on the CPU: `load("best").predict(["where is my card?"])`.

    Args:
        checkpoint: A path, or `best` or `last` of the newest run.
        default_root_dir: Where to look for the newest run: the folder that contains `lightning_logs`.

    Raises:
        UserError: The file is missing, damaged or unsafe, or this project did not write it.
    """
    return load_model(open_checkpoint(str(checkpoint), default_root_dir, TextClassifier), TextClassifier)


def has_head_start(weights: str, head_start: bool | None) -> bool:
    """Whether these options ask for a head start: by default, if there are pretrained weights."""
    return weights != "none" if head_start is None else head_start


def encoder_of(checkpoint: Checkpoint) -> tuple[dict[str, Any], Tokenizer]:
    """The configuration and the tokenizer of a checkpoint's encoder. Raises `UserError` if it has none."""
    known = checkpoint.content["hyper_parameters"]
    config, content = known.get("encoder_config"), known.get("tokenizer_json")
    if not isinstance(config, dict) or not isinstance(content, str):
        raise UserError(f"checkpoint {checkpoint.path}: not that of a text classifier")
    config = checked_config(config)
    return config, tokenizer_of(content, config)
