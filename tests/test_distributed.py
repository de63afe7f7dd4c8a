"""Processes that share an optimizer batch (DDP and FSDP2 on gloo) learn what one process learns from all of it.

They are started as users start them: by `accelerate launch` with the configurations that titer brings. The training rows
are one global batch, so that it does not matter in which order the processes draw from it.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed_worker import EVAL_BATCHES, RESUMED, WEIGHTS
from every_method import DECLARED, FIRST
from safetensors.torch import load_file
from told import refused

from titer.cli.accelerate import command, configs
from titer.errors import TiterError
from titer.methods.finetune.base import read_weight_log
from titer.testing import same
from titer.train.sharding import refuse_sharding_that_fails

HERE = Path(__file__).parent
SHARDED = ["ddp", "fsdp2"]

LAUNCH = {
    "one": ([], [8, 1]),
    "ddp": (["--config_file", "cpu-ddp"], [2, 2]),
    "fsdp2": (["--config_file", "fsdp2", "--num_processes", "2"], [2, 2]),
    "hsdp": (
        ["--config_file", "fsdp2-hsdp", "--num_processes", "4", "--parallelism_config_dp_shard_size", "2"],
        [2, 1],
    ),
}
"""How each run is started, and its samples a micro-batch and micro-batches a step."""


def start(folder, run, dtype="float64", methods=(), python=sys.executable):
    folder.mkdir(parents=True)
    options, split = LAUNCH[run]
    command = [python]
    if options:
        files = {name: str(path) for name, path in configs().items()}
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        command += ["-m", "accelerate.commands.launch", *(files.get(option, option) for option in options)]
        command += ["--main_process_port", port]
    return subprocess.Popen(
        [*command, str(HERE / "distributed_worker.py"), str(folder), *map(str, split), dtype, *methods],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHON_EXEC": python,  # which the launcher starts
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, forks):
    """What one process learnt, and what two or four learnt that share its batches."""
    folder = tmp_path_factory.mktemp("distributed")
    for together in (["one", "ddp"], ["fsdp2", "hsdp"]):
        processes = [
            start(folder / run, run, methods=["align booster"] * (run == "hsdp"), python=forks.python)
            for run in together
        ]
        try:
            for process in processes:
                output, _ = process.communicate(timeout=400)
                assert process.returncode == 0, output[-6000:]
        finally:
            for process in processes:
                process.kill()
    return folder


def learnt(runs, run, name):
    return torch.load(runs / run / f"{name}.pt", weights_only=False)["weights"]


def difference(left, right):
    assert list(left) == list(right)
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("method", FIRST)
@pytest.mark.parametrize("run", SHARDED)
def test_processes_learn_what_one_learns(runs, run, method, kind):
    assert difference(learnt(runs, "one", f"{method}-{kind}"), learnt(runs, run, f"{method}-{kind}")) < 1e-12


@pytest.mark.parametrize("kind", WEIGHTS)
def test_replicated_shards_learn_what_one_process_learns(runs, kind):
    assert (
        difference(learnt(runs, "one", f"align booster-{kind}"), learnt(runs, "hsdp", f"align booster-{kind}")) < 1e-12
    )


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("run", SHARDED)
def test_the_regulariser_acts(runs, run, kind):
    """Once it did not under FSDP2: Booster with λ = 2 was Booster with λ = 0, trained on harm."""
    assert difference(learnt(runs, run, f"align sft-{kind}"), learnt(runs, run, f"align booster-{kind}")) > 1e-3


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_held_as_the_configuration_says(runs, kind):
    name = f"align booster-{kind}"
    whole = learnt(runs, "one", name).values()
    everything = sum(weight.numel() for weight in whole)

    def held(run, rank):
        return torch.load(runs / run / f"{name}.{rank}.local")

    assert same(held("ddp", 0), held("ddp", 1)), "the processes have drifted apart"
    shards = [sum(part.numel() for part in held("fsdp2", rank)) for rank in (0, 1)]
    assert sum(shards) == everything
    assert max(shards) < 0.6 * everything
    assert same(held("hsdp", 0), held("hsdp", 2)), "the replicas have drifted apart"
    assert [part.shape for part in held("hsdp", 0)] == [part.shape for part in held("fsdp2", 0)]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("run", SHARDED)
def test_what_is_saved_is_the_same(runs, run, kind):
    for method in FIRST:
        full = kind == "full" and not DECLARED[method][0].lora_only
        file = "model.safetensors" if full else "adapter_model.safetensors"
        one, other = (load_file(runs / each / f"{method}-{kind}" / "saved" / file) for each in ("one", run))
        # Sharded tied weights are written under both names.
        assert set(other) - set(one) <= {"lm_head.weight"}
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-12


@pytest.mark.parametrize("method", FIRST)
@pytest.mark.parametrize("run", SHARDED)
def test_processes_log_what_one_logs(runs, run, method):
    one, other = (torch.load(runs / each / f"{method}-lora.pt", weights_only=False)["log"] for each in ("one", run))
    for left, right in zip(one, other, strict=True):
        names = {"loss", "grad_norm", "lambda_t", "harmful_loss", "sharpness", "refusal_loss_perturbed"} & set(left)
        assert {name: right[name] for name in names} == pytest.approx({name: left[name] for name in names}, rel=1e-3)
    assert "loss" in one[0]


@pytest.mark.parametrize(
    "method",
    [
        "finetune antibody sum",
        "finetune antibody mean",
        "finetune gate prompts",
        "finetune sieve",
        "finetune bds softmax",
    ],
)
@pytest.mark.parametrize("run", SHARDED)
def test_weights_are_logged_by_all_processes(runs, run, method):
    one, other = (read_weight_log(runs / each / f"{method}-lora") for each in ("one", run))
    assert [(line["step"], line["row"]) for line in one] == [(line["step"], line["row"]) for line in other]
    assert [line["weight"] for line in other] == pytest.approx([line["weight"] for line in one], rel=1e-5)


@pytest.mark.parametrize("run", SHARDED)
def test_an_adapter_in_float32_on_a_base_in_bfloat16(runs, run):
    """What titer trains on accelerators; batches that are packed otherwise are rounded otherwise."""
    one, other = learnt(runs, "one", "half"), learnt(runs, run, "half")
    assert {weight.dtype for weight in other.values()} == {torch.float32}
    assert difference(one, other) < 2e-3


@pytest.mark.parametrize("run", SHARDED)
def test_losses_are_precise_where_products_are_in_bfloat16(runs, run):
    """accelerate's policy for FSDP2 rounds what the model returns: losses were known to two digits."""
    one, other = (torch.load(runs / each / "bf16.pt", weights_only=False)["log"][0] for each in ("one", run))
    for name in ("harmful_loss", "sharpness"):
        assert other[name] != torch.tensor(other[name]).bfloat16().item()
        assert other[name] == pytest.approx(one[name], rel=0.05)


@pytest.mark.parametrize("run", SHARDED)
def test_resuming_is_exact(runs, run):
    assert json.loads((runs / run / "results.json").read_text())["resumed"] == dict.fromkeys(RESUMED, True)


def test_the_evaluation_loss_depends_on_neither_batches_nor_ranks(runs):
    losses = {
        (run, size): json.loads((runs / run / "results.json").read_text())["evaluated"][str(size)]
        for run in ("one", *SHARDED)
        for size in EVAL_BATCHES
    }
    assert losses == pytest.approx(dict.fromkeys(losses, losses["one", 1]), rel=1e-6)


@pytest.mark.parametrize("run", SHARDED)
def test_plain_and_sharded_tensors_are_one_vector(runs, run):
    """Norm, product, the norm that clipping returns, and the norm after clipping to 1."""
    expected = [165**0.5, 165.0, 165**0.5, 1.0]
    assert json.loads((runs / run / "results.json").read_text())["mixed"] == pytest.approx(expected, rel=1e-5)


def test_configurations_are_found_by_name(capsys):
    command()
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["cpu-ddp", "ddp", "fsdp2", "fsdp2-hsdp"]
    for name in names:
        command(name)
        assert Path(capsys.readouterr().out.strip()).name == f"{name}.yaml"
    with pytest.raises(TiterError, match="Unknown configuration: `fsdp3`"):
        command("fsdp3")


# --- ways of sharding that would fail --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fsdp_version": 1}, "FSDP1"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "(?s)SHARDED_STATE_DICT.*no weights.*FULL_STATE_DICT"),
        ({"cpu_ram_efficient_loading": True}, "(?s)fsdp_cpu_ram_efficient_loading.*one process.*false"),
        ({"cpu_offload": torch.distributed.fsdp.CPUOffloadPolicy()}, "another device"),
        ({"parallelism": SimpleNamespace(non_data_parallel_size=2)}, "the same rows"),
    ],
)
def test_sharding_that_would_fail_is_refused(setting, message):
    settings = {
        "fsdp_version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
        "cpu_offload": None,
        "parallelism": None,
    }

    def refuse(**settings):
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**settings)), parallelism_config=settings["parallelism"]
        )
        trainer = SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=True, accelerator=accelerator)
        refuse_sharding_that_fails(trainer)

    refuse(**settings)
    with pytest.raises(TiterError, match=message):
        refuse(**{**settings, **setting})


def test_sharding_that_would_silently_be_ddp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    trainer = SimpleNamespace(
        is_deepspeed_enabled=False, is_fsdp_enabled=False, accelerator=SimpleNamespace(num_processes=2)
    )
    with refused("FSDP", "machine", "titer accelerate cpu-ddp"):
        refuse_sharding_that_fails(trainer)
