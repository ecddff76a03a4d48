"""The cluster files: Ray's own validator, tokens on every node, commands that parse."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.captioning.arguments import parse

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
CLUSTERS = ["ray-aws.yaml", "ray-onprem.yaml"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_rays_validator_accepts_the_cluster(name: str):
    config = prepare_config(yaml.safe_load((DEPLOY / name).read_text()))
    validate_config(config)
    config["no_such_field"] = 1
    with pytest.raises(Exception, match="no_such_field"):  # the validator does look
        validate_config(config)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_starts_with_a_token(name: str):
    config = yaml.safe_load((DEPLOY / name).read_text())
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[kind] if "ray start" in line]
        assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")
        assert re.search(r"RAY_AUTH_TOKEN(_PATH)?=", start)


def test_the_rayjob_asks_for_a_token_and_resumes():
    job = yaml.safe_load((DEPLOY / "kuberay-rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"} and spec["backoffLimit"] > 0
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"ray[default]=={spec['rayClusterSpec']['rayVersion']}\n" in requirements
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("name", [*CLUSTERS, "kuberay-rayjob.yaml"])
def test_the_commands_in_the_files_parse(name: str):
    text = (DEPLOY / name).read_text().replace("\\\n#", " ").replace("\n", " ")
    commands = re.findall(r"python jobs/capfilt\.py( --recipe .*?--output \S+)", text)
    assert len(commands) == 1
    args = parse(shlex.split(commands[0]))
    assert args.recipe == "blip-large" and args.output.endswith("capfilt")


def test_deepspeeds_parser_takes_the_hostfile():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(DEPLOY / "hostfile")) == {"node1": 8, "node2": 8}


PDSH = 'echo "$@" > "$SAID"'


def test_the_ranks_of_a_hostfile_get_the_variables_that_they_need(tmp_path: Path):
    """DeepSpeed's own runner, with a pdsh that writes down what it is told to run."""
    for name, body in (("pdsh", PDSH), ("ssh", "echo 10.0.0.1")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    own = {"HF_HOME": "/models", "ISTHMUS_CACHE": "/a cache", "AWS_REGION": "r"}
    own |= {"GLOO_SOCKET_IFNAME": "eth1", "SECRET_OF_MINE": "no", "DS_ACCELERATOR": "cpu"}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "SAID": str(tmp_path / "said"), **own}
    wrote = subprocess.run(
        [DEPLOY / "deepspeed_env.sh"], env=env, capture_output=True, text=True, check=True
    )
    assert "HF_HOME" in wrote.stdout and "SECRET" not in wrote.stdout
    assert (tmp_path / ".deepspeed_env").stat().st_mode & 0o777 == 0o600
    runner = ["deepspeed", "--hostfile", str(DEPLOY / "hostfile"), "jobs/stage1.py"]
    subprocess.run(runner, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    said = (tmp_path / "said").read_text()
    assert "node1,node2" in said and "jobs/stage1.py" in said
    for name, value in own.items():
        shown = f'"{value}"' if " " in value else value
        assert (f"export {name}={shown};" in said) == (name != "SECRET_OF_MINE"), (name, said)


def test_the_image_shows_its_gpus_and_has_what_the_jobs_start():
    text = (DEPLOY / "Containerfile").read_text()
    assert "NVIDIA_VISIBLE_DEVICES=all" in text
    for package in ("gcc", "pdsh", "openssh-client"):
        assert re.search(rf"^\s+(.* )?{package} ", text, re.MULTILINE), package


@pytest.mark.parametrize("name", [*CLUSTERS, "kuberay-rayjob.yaml"])
def test_the_files_name_the_device_and_their_heads_run_no_shard(name: str):
    text = (DEPLOY / name).read_text()
    assert "--device gpu" in text
    if name == "ray-aws.yaml":
        config = yaml.safe_load(text)
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    if name == "kuberay-rayjob.yaml":
        head = yaml.safe_load(text)["spec"]["rayClusterSpec"]["headGroupSpec"]
        assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


def evaluation_files() -> dict[str, dict]:
    """The objects of the CronJob's file by kind, and the RayJob that it holds."""
    text = (DEPLOY / "kuberay-evaluate-cronjob.yaml").read_text()
    objects = {one["kind"]: one for one in yaml.safe_load_all(text)}
    return objects | {"RayJob": yaml.safe_load(objects["ConfigMap"]["data"]["rayjob.yaml"])}


def test_the_cronjob_starts_the_rayjob_that_it_brings():
    objects = evaluation_files()
    cron, rayjob = objects["CronJob"]["spec"], objects["RayJob"]
    assert cron["concurrencyPolicy"] == "Forbid"
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    spec = rayjob["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray[default]=={spec['rayVersion']}\n" in (ROOT / "requirements.txt").read_text()
    (group,) = spec["workerGroupSpecs"]
    named = group["template"]["spec"]["priorityClassName"]
    assert named == objects["PriorityClass"]["metadata"]["name"]
    assert objects["PriorityClass"]["value"] < 0


def test_the_commands_of_scheduled_evaluation_parse():
    import tyro

    from jobs.evaluation.arguments import EvaluateArgs

    entry = evaluation_files()["RayJob"]["spec"]["entrypoint"].split()
    script = (DEPLOY / "slurm_evaluate.sh").read_text()
    shown = re.search(r"slurm_evaluate\.sh (--watch .*--once)\n", script)
    assert entry[:2] == ["python", "jobs/evaluate.py"] and shown
    for options in (entry[2:], shlex.split(shown[1])):
        args = tyro.cli(EvaluateArgs, args=options)
        assert args.suite == "nightly" and args.watching.once
