"""Plain fine-tuning on an upload: no defence."""

from titer.finetune.base import FinetuneConfig
from titer.methods import Method
from titer.trainer import PackedSFTTrainer

SFT = Method(FinetuneConfig, PackedSFTTrainer, "Plain fine-tuning: no defence.")
