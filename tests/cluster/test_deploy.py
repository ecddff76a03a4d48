"""The cluster files: Ray's own validator, tokens on every node, commands that parse."""

import re
import shlex
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
