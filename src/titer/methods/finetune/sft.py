"""Plain fine-tuning on an upload: no defence."""

from titer.methods import Method
from titer.methods.finetune.base import FinetuneConfig
from titer.train.trainer import PackedSFTTrainer

SFT = Method(FinetuneConfig, PackedSFTTrainer, "Plain fine-tuning: no defence.")
