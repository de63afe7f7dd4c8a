"""Plain alignment: supervised fine-tuning on refusals and helpful answers, what every defence is compared with."""

from titer.methods import Method
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

SFT = Method(PackedSFTConfig, PackedSFTTrainer, "Plain alignment: refusals of harmful requests and helpful answers.")
