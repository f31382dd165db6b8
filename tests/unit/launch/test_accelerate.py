"""Ways to run that accelerate offers and this project does not do: refused by name, with the way out."""

import subprocess
import sys

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from rlhf.errors import ConfigError
from rlhf.launch.accelerate import refuse_unsupported_launch

ZERO = r"Leave it out, and set distributed\.zero"


def environment_of(*options: str) -> dict[str, str]:
    """What accelerate itself gives to the processes that it starts with these options."""
    defaults = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2", "--num_machines", "1"]
    arguments = launch_command_parser().parse_args([*defaults, "--num_cpu_threads_per_process", "1", *options, "x.py"])
    environment: dict[str, str] = prepare_multi_gpu_env(arguments)
    return environment


@pytest.fixture(autouse=True)
def _only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("options", [(), ("--multi_gpu",)])
def test_what_is_supported_passes(options: tuple[str, ...]) -> None:
    refuse_unsupported_launch(environment_of(*options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--use_fsdp",), rf"ACCELERATE_USE_FSDP is true: FSDP \(accelerate launch --use_fsdp\) is not .*{ZERO}"),
        (("--use_fsdp", "--fsdp_version", "2"), rf"FSDP .*{ZERO}"),
        (("--use_megatron_lm",), rf"Megatron-LM .*{ZERO}"),
        (("--mixed_precision", "bf16"), r"ACCELERATE_MIXED_PRECISION is bf16: .*set model\.dtype to bfloat16"),
        (("--mixed_precision", "fp16"), r"ACCELERATE_MIXED_PRECISION is fp16: .*set model\.dtype"),
        (("--dynamo_backend", "inductor"), r"ACCELERATE_DYNAMO_BACKEND is INDUCTOR: torch\.compile"),
    ],
)
def test_what_is_not_is_refused_by_name(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_unsupported_launch(environment_of(*options))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FSDP_SHARDING_STRATEGY", "1"), ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"), ("XLA_USE_BF16", "1")],
)
def test_each_variable_counts_alone(variable: str, value: str) -> None:
    refuse_unsupported_launch({})
    with pytest.raises(ConfigError, match=variable):
        refuse_unsupported_launch({variable: value})


@pytest.mark.parametrize("command", ["run", "sft", "ppo", "study"])
def test_every_command_that_trains_refuses_before_it_reads_anything(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code = f"import sys; sys.argv = ['rlhf', '{command}', 'no_such_config.yaml']\nfrom rlhf.cli.app import main\n"
    code += "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.startswith("Error: ACCELERATE_USE_FSDP is true"), done.stderr
    assert done.stdout == "2 False\n"
