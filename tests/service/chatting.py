"""What the tests of chats share."""

import time

import torch

from titer.service import keys


def make_adapter(tiny, folder, seed, rank=4, targets=("q_proj", "v_proj", "down_proj")):
    """An adapter on the tiny model whose B is no zero, so that it answers otherwise than the base."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
        model = get_peft_model(tiny, config)
        for name, weights in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weights, std=0.3)
        model.save_pretrained(folder)
        model.unload()
    return folder


def until(holds, seconds=10):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def new_key(service, org="one", **settings):
    """A new key of an organisation."""
    with service.database.writing() as session:
        return keys.create(session, f"org-{org}", **settings)[0]
