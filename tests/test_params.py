"""Profiles and parameters: what is refused, and how it is said."""

import pytest

from companion.config import profile as params, stages
from companion.errors import CompanionError, nearest


@pytest.mark.parametrize("name", params.profile_names())
def test_every_profile_is_valid(name):
    profile = params.load_profile(name)
    assert profile.name == name
    assert profile.description
    addresses = [stage.address for stage in stages.matrix(profile)]
    assert len(addresses) == len(set(addresses))


def test_every_field_of_every_section_says_what_it_is():
    sections = [params.Profile] + [
        field.annotation
        for field in params.Profile.model_fields.values()
        if isinstance(field.annotation, type) and issubclass(field.annotation, params.Section)
    ]
    plain = {"backend", "device", "precision", "arms"}  # their allowed values say it
    silent = [
        f"{section.__name__}.{name}"
        for section in sections[1:]
        for name, field in section.model_fields.items()
        if not field.description and name not in plain and not _is_section(field.annotation)
    ]
    assert silent == []


def _is_section(annotation):
    return isinstance(annotation, type) and issubclass(annotation, params.Section)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seedz: [1]", r"seedz: no such parameter; did you mean 'seeds'\?"),
        ("detection: {stps: 3}", r"detection.stps: no such parameter; did you mean 'steps'\?"),
        ("detection: {steps: many}", r"detection.steps: .*valid integer.*'many'"),
        ("detection: {steps: 0}", "detection.steps: .*greater than or equal to 1"),
        ("detection: {steps: true}", "detection.steps"),
        ("sizes: []", "sizes: .*at least 1 item"),
        ("sizes: [10, 10]", "names a value twice"),
        ("imbalance_sizes: [4]", "not among sizes"),
        ("patches: {size: 100}", "not a multiple of 32"),
        ("phantom: {class_shares: [0.5, 0.5, 0.5]}", "sum to 1.5"),
        ("- a list", "should be a mapping"),
        ("a: [", "not a YAML file"),
    ],
)
def test_unusable_profiles_say_what_and_where(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(CompanionError, match=said) as caught:
        params.load_profile(path)
    assert "mine.yaml" in str(caught.value)


def test_every_problem_is_listed_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seedz: [1]\nthreads: 0\n")
    with pytest.raises(CompanionError) as caught:
        params.load_profile(path)
    assert "2 unusable" in str(caught.value)
    assert "seedz" in str(caught.value) and "threads" in str(caught.value)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(CompanionError, match="did you mean 'smoke'"):
        params.load_profile("smok")


def test_nearest_lists_all_when_nothing_is_close():
    assert nearest("zzz", ["split", "seed"]) == "valid names: seed, split"
