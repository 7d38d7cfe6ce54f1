"""The same graph of notebooks through Snakemake's cluster executors.

Slurm for real, on one node of this machine's own (Debian's slurmctld, slurmd, slurm-client and munge; root), where a
job outlives its time limit and continues. Kubernetes as a dry run. `make cluster-test` installs what these need.
"""

import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from project import ROOT, Project

from companion.config import load_profile
from companion.errors import CompanionError
from companion.workflow import freshness, run, status

SLURM = ("munged", "slurmctld", "slurmd", "sbatch")
# A training of 100 s on the cluster, where one minute is given; the local run of the same notebook does not pause.
TRAINING = """
import os, time, torch
from companion.layout import root
from companion.training import fit
from companion.weights import load_state
torch.manual_seed(1)
layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(layer.parameters())
pause = float(os.environ.get('PAUSE', 0)) * (arm == 'EXP')
def step(i):
    time.sleep(pause)
    loss = layer(torch.full((1, 2), float(i))).square().sum()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return {'loss': loss.item()}
path = out / 'checkpoint' / 'training.safetensors'
with open(root() / f'starts-{arm}.txt', 'a') as file:
    file.write(f"{load_state(path)[1]['step'] if path.exists() else 0}\\n")
log = fit(step, {'layer': layer, 'optimizer': optimizer}, steps=100, folder=out, identity='x', every=5)
write_json(out / 'log.json', log.to_dict('list'))
"""


def settings(name: str) -> dict:
    return yaml.safe_load((ROOT / "cluster" / name / "config.yaml").read_text(encoding="utf-8"))


def save_settings(folder: Path, content: dict) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture
def slurm(tmp_path):
    """A cluster of one node, this machine, on the loopback device; while it lasts."""
    absent = [name for name in SLURM if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent or os.geteuid() != 0:
        pytest.skip(f"needs root and Slurm (`make cluster-test`); not here: {', '.join(absent) or 'root'}")
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the cluster extra is not installed")
    # Where commands look that are started without SLURM_CONF, as the executor's are.
    config = Path("/etc/slurm/slurm.conf")
    if config.exists():
        pytest.skip(f"{config} exists: this machine may belong to a cluster")
    tmp_path.chmod(0o755)
    (tmp_path / "key").write_bytes(os.urandom(128))
    (tmp_path / "key").chmod(0o600)
    node = os.uname().nodename
    config.parent.mkdir(exist_ok=True)
    config.write_text(f"""
ClusterName=test
SlurmctldHost={node}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={tmp_path}/munge
SlurmUser=root
StateSaveLocation={tmp_path}/state
SlurmdSpoolDir={tmp_path}/spool
SlurmctldPidFile={tmp_path}/slurmctld.pid
SlurmdPidFile={tmp_path}/slurmd.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=2
MinJobAge=600
SlurmdParameters=config_overrides
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100000 State=UNKNOWN
PartitionName=cpu Nodes=ALL State=UP
PartitionName=gpu Nodes=ALL State=UP
""")
    place = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    (tmp_path / "state").mkdir()
    (tmp_path / "spool").mkdir()
    munged = ["munged", "--foreground", "--force", f"--key-file={tmp_path}/key", f"--socket={tmp_path}/munge"]
    munged += [f"--{name}-file={tmp_path}/munge.{name}" for name in ("pid", "log", "seed")]
    started = []
    try:
        for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            log = open(tmp_path / f"{command[0]}.out", "wb")  # noqa: SIM115 (the daemon writes to it)
            started.append(subprocess.Popen(command, env=place, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1)
        for _ in range(60):
            shown = subprocess.run(["sinfo", "-h", "-o", "%T"], env=place, capture_output=True, text=True).stdout
            if "idle" in shown:
                break
            time.sleep(0.5)
        else:
            raise AssertionError((tmp_path / "slurmctld.out").read_text() + (tmp_path / "slurmd.out").read_text())
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], env=place, check=False)
        time.sleep(1)
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)
        config.unlink()


@pytest.mark.slow
def test_a_job_ended_by_its_time_limit_continues_and_all_comes_out_as_without_a_cluster(slurm, tmp_path):
    local, distant = (Project(tmp_path / name) for name in ("local", "distant"))
    for project in (local, distant):
        project.write("06_mask_rcnn", TRAINING)
    local.companion("run", "tiny")
    given = settings("slurm")
    given |= {"slurm-init-seconds-before-status-checks": 2, "slurm-status-command": "squeue"}  # it keeps no accounts
    for rule in given["set-resources"].values():  # this node has no GPU
        rule.update(gpu=0, mem_mb=2000, runtime=1)
    given["default-resources"]["mem_mb"] = 1000
    folder = str(save_settings(tmp_path / "mine", given))
    distant.companion("run", "tiny", "--cluster", folder, PAUSE="1")
    starts = [int(line) for line in (distant.root / "starts-EXP.txt").read_text().splitlines()]
    assert starts[0] == 0 and len(starts) >= 2 and all(b > a for a, b in pairwise(starts)), starts
    jobs = subprocess.run(["squeue", "--states=all", "-h", "-o", "%T"], capture_output=True, text=True).stdout
    assert sorted(set(jobs.split())) == ["COMPLETED", "TIMEOUT"]
    results = [{name: stamp["outputs"] for name, stamp in project.stamps().items()} for project in (local, distant)]
    assert results[0] == results[1]
    assert "nothing to do" in distant.companion("run", "tiny", "--cluster", folder)


def test_kubernetes_settings_and_graph_are_accepted(tmp_path):
    for plugin in ("executor_plugin_kubernetes", "storage_plugin_fs"):
        pytest.importorskip(f"snakemake_{plugin}", reason="the cluster extra is not installed")
    given = settings("kubernetes")
    given["default-storage-prefix"] = str(tmp_path / "sources")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run"]
    command += ["--workflow-profile", str(save_settings(tmp_path / "mine", given)), "--config", "profile=smoke"]
    place = {**os.environ, "COMPANION_RUNS": str(tmp_path / "runs"), "COMPANION_ROOT": str(ROOT)}
    done = subprocess.run(command, env=place, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    detectors = [part for part in shown.split("rule ") if part.startswith("detector:")]
    assert len(detectors) == len(load_profile("smoke").detectors())
    assert all("gpu=1" in part and "mem_mb=32768" in part and "scale=0" in part for part in detectors)
    assert "mem_mb=4096" in next(part for part in shown.split("rule ") if part.startswith("claims:"))


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_settings_name_the_rules_that_train(name):
    given, rules = settings(name), status.rules()
    assert given["executor"] == name and given["retries"] >= 1
    assert set(given["set-resources"]) == {rule for rule, notebook in rules.items() if freshness.trains(notebook)}


@pytest.mark.parametrize(("content", "said"), [
    (None, "should be a config.yaml that names an executor; copy cluster/slurm"),
    ("jobs: 3", "names an executor"), ("executor: [", "names an executor"),
    ("executor: lsf", "executor lsf is not installed"),
])  # fmt: skip
def test_unusable_settings_are_one_message_before_any_work(content, said, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    if content:
        (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CompanionError, match=said):
        run.run(load_profile("smoke"), 2, tmp_path)
    assert not (tmp_path / "runs").exists()
