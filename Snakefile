# The paper's experimental matrix as a graph of notebooks. `companion run PROFILE` is a friendly face over
#   snakemake --cores 2 --rerun-triggers mtime --config profile=smoke
# The stages, their folders and what each reads stand in src/companion/matrix.py.
import shlex
import shutil
import sys

from companion import places, stages
from companion.execute import DONE, parse_split, synchronise
from companion.params import load_profile

NAME = str(config.get("profile", "smoke"))
GIVEN = {key: config[key] for key in ("dataset",) if key in config}
if "splits" in config:
    GIVEN["splits"] = [parse_split(text) for text in str(config["splits"]).split(",")]
PROFILE = load_profile(NAME, **GIVEN)
QUOTED = shlex.join([NAME, PROFILE.dataset, ",".join(str(split) for split in PROFILE.splits)])
TREE = places.tree(PROFILE)
MATRIX = {stage.address: stage for stage in stages.matrix(PROFILE)}
# 'auto' is decided where the job runs; here it matters only whether jobs have to share one GPU.
GPUS = int(PROFILE.device == "cuda" or (PROFILE.device == "auto" and shutil.which("nvidia-smi") is not None))

# Telling what is fresh reads every file of the tree; `companion run` has just done that for this tree, under its lock.
if workflow.is_main_process and config.get("synchronised") != str(TREE):
    synchronise(PROFILE)


def flag(address):
    return local(str(TREE / address / DONE))  # on a file system that all jobs share, never in an object store


def read_by(kind):
    return lambda wildcards: [flag(s.address) for s, _ in MATRIX[kind.folder.format(**wildcards)].upstream.values()]


wildcard_constraints:
    split=r"[^/]+",
    n_train=r"\d+",
    generator=r"\d+",
    arm=r"[^/]+",
    seed=r"\d+",
    masks=r"[a-z]+",


rule all:
    input:
        [flag(address) for address in MATRIX],


for kind in stages.KINDS.values():

    rule:
        name:
            kind.name
        input:
            read_by(kind),
        output:
            flag(kind.folder),
        params:
            address=lambda wildcards, kind=kind: kind.folder.format(**wildcards),
        threads: PROFILE.threads
        resources:
            gpu=GPUS * kind.trained,  # memory and time are for a cluster's settings to say, cluster/*/config.yaml
            # Detectors may share one GPU; what trains or samples the diffusion model takes all of it.
            gpu_share=GPUS * kind.trained * (1 if kind.name == "detector" else PROFILE.jobs_per_device),
        shell:
            f"{sys.executable} -m companion.execute {QUOTED} {{params.address:q}}"
