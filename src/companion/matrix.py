"""Which notebooks a profile runs, with which keys and in which order, and what each reads: plain values, no files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

from companion.kinds import KINDS, POOLS, Kind
from companion.config.profile import Profile
from companion.places import class_count

Keys = Mapping[str, Any]


class Reading(NamedTuple):
    """Files of another stage that a stage reads: which kind, its keys, and a prefix ('' all, 'test/' a folder)."""

    kind: str
    keys: Keys
    part: str = ""


def stage_keys(profile: Profile) -> list[tuple[Kind, Keys]]:
    """Every stage of a profile as its kind and keys, each after the stages it reads."""
    conditions = [{"split": s, "n_train": n} for s, n in product(profile.splits, profile.sizes)]
    # With one class there is no rare one.
    rare = [c for c in conditions if c["n_train"] in profile.imbalance_sizes and class_count(profile) != 1]
    simulated = [*({**c, "masks": "plain"} for c in conditions), *({**c, "masks": "rare"} for c in rare)]
    generators = [{**c, "generator": generator} for c in conditions for generator in profile.generators]
    controls = [pool for arm in profile.arms if (pool := POOLS.get(arm)) in ("resynth", "render")]
    pools = [*simulated, *({**c, "masks": pool} for c in conditions for pool in controls)]
    detectors = [{**c, "arm": arm} for c in conditions for arm in profile.arms if arm != "EXP+RARE"]
    detectors += [{**c, "arm": "EXP+RARE"} for c in rare]
    keys: dict[str, list[dict[str, Any]]] = {
        "micrographs": [{"split": split} for split in profile.splits],
        "statistics": conditions,
        "masks": simulated,
        "diffusion": generators,
        "generated": [{**c, "generator": g} for c in pools for g in _painters(profile, c["masks"])],
        "detector": [{**d, "seed": seed} for d in detectors for seed in profile.seeds],
        "faithfulness": generators if "EXP" in profile.arms else [],
    }
    named = profile.extensions.studies if profile.dataset == "phantom" else ()
    keys |= {kind.name: [{}] if kind.name in named else [] for kind in KINDS.values() if kind.study}
    kinds = list(KINDS)

    def turn(stage: tuple[Kind, Keys]) -> int:
        # Detectors of the filtered pool come after what filters it, which comes after the other detectors.
        kind, own = stage
        late = {"faithfulness": 1, "EXP+FILTERED": 2}
        after = 3 * (kinds.index(kind.name) > kinds.index("detector"))
        return late.get(kind.name) or late.get(own.get("arm", "")) or after

    return sorted(((kind, own) for kind in KINDS.values() for own in keys.get(kind.name, [{}])), key=turn)


def _painters(profile: Profile, masks: str) -> list[int]:
    """Generators whose images of a pool differ: `render` has no network, so that one of it serves all seeds."""
    return profile.generators[:1] if masks == "render" else profile.generators


def readings(kind: Kind, keys: Keys, profile: Profile) -> dict[str, Reading]:
    """What a stage reads, by name; files that the whole profile makes are named by the folder that holds them."""

    def other(name: str, part: str = "", **changed: Any) -> Reading:
        merged = {**keys, **changed}
        return Reading(name, {key: merged[key] for key in KINDS[name].keys}, part)

    def every(name: str, part: str = "", label: str = "") -> dict[str, Reading]:
        own = [found for made, found in stage_keys(profile) if made.name == name]
        return {KINDS[name].address(found) + label: Reading(name, found, part) for found in own}

    def pool(masks: str) -> Reading:
        generator = profile.generator_of(keys["seed"])
        if masks == "filtered":
            return other("faithfulness", "kept/", generator=generator)
        return other("generated", masks=masks, generator=generator if masks != "render" else profile.generators[0])

    train = {"train": other("micrographs", f"train-n{keys['n_train']}/")} if "n_train" in keys else {}
    test = {"test": other("micrographs", "test/")} if train else {}
    val = {"val": other("micrographs", "val/")} if train else {}
    match kind.name:
        case "micrographs" | "bias" | "feedback" | "shift":
            return {}
        case "statistics" | "diffusion":
            return train
        case "masks":
            return {**train, "statistics": other("statistics")}
        case "generated":
            simulated = other("masks", masks="rare" if keys["masks"] == "rare" else "plain")
            return {**train, **test, "simulated": simulated, "diffusion": other("diffusion")}
        case "detector":
            masks = POOLS.get(keys["arm"])
            return {**train, **test, **val, **({"generated": pool(masks)} if masks else {})}
        case "faithfulness":
            judge = other("detector", arm="EXP", seed=profile.seeds[0])
            plain = other("generated", masks="plain")
            return {**train, **test, "generated": plain, "diffusion": other("diffusion"), "detector": judge}
        case "thresholds":
            validation = every("micrographs", "val/", " (validation)")
            return {**every("micrographs", "test/"), **validation, **every("detector", "predictions")}
        case "sizes":
            return {"scores": other("thresholds", "scores.parquet")}
        case "significance" | "errors":
            detections = {**every("micrographs", "test/"), **every("detector", "predictions.parquet")}
            return {"scores": other("thresholds", "scores.parquet"), **detections}
        case "imbalance":
            return {"scores": other("thresholds", "scores.parquet"), **every("statistics"), **every("masks", "table")}
        case _:
            evaluated = {name: other(name) for name in ("thresholds", "sizes", "significance", "imbalance")}
            shown = {**every("micrographs"), **every("detector", "predictions.parquet")}  # the strip of the front page
            return {**evaluated, **every("generated"), **every("diffusion", "summary"), **shown}
