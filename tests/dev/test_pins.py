"""Four files that speak of versions agree, and each disagreement is found when it is planted."""

import re

import pytest
from conftest import edit

from localdpo.dev import pins
from localdpo.ground import paths

ROOT = paths.root()


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("constraints.txt", "papermill==2.7.0\n", "", "constraints.txt does not pin papermill"),
        ("constraints.txt", "snakemake==9", "snakemake==8", "pins snakemake to 8"),
        ("pyproject.toml", '"peft",', '"peft>=99",', "wants >=99"),
        ("settings.ini", "requirements = torch numpy", "requirements = torch", "name different packages"),
        ("pyproject.toml", '    "jupyterlab",\n', "", "extra `dev`"),
        ("pyproject.toml", '">=3.11"', '">=3.12"', "requires-python"),
        ("environment.yml", "python=3.11", "python=3.12", "environment.yml does not ask for python=3.11"),
        ("environment.yml", "--constraint constraints.txt", "--upgrade", "does not pass constraints.txt"),
        ("environment.yml", "study,", "", "environment.yml installs the extras"),
        (
            "settings.ini",
            "allowed_cell_metadata_keys = tags",
            "allowed_cell_metadata_keys =",
            "`allowed_cell_metadata_keys` is tags",
        ),
        ("settings.ini", "tst_flags = notest slow gpu", "tst_flags = notest", "`tst_flags`"),
        ("settings.ini", "version = 0.1.0", "version = 0.2.0", "is version 0.1.0"),
    ],
)
def test_a_pin_that_disagrees_is_found(checkout, name, old, new, said):
    assert pins.pin_faults(checkout) == []
    edit(checkout / name, old, new)
    assert any(said in fault for fault in pins.pin_faults(checkout)), pins.pin_faults(checkout)


def test_the_nbdev_that_reads_settings_ini_is_installed():
    import nbdev

    assert nbdev.__version__ == "2.4.14"
    assert (
        re.search(r"^update_pyproject = False$", (ROOT / "settings.ini").read_text(), re.M)
        and not (ROOT / "setup.py").exists()
    )


def test_what_is_installed_is_what_is_pinned():
    from localdpo.ground.info import versions

    installed = versions(
        ["torch", "diffusers", "transformers", "peft", "accelerate", "papermill", "snakemake", "av", "matplotlib"]
    )
    pinned = pins.pins(ROOT)
    assert {name: version.partition("+")[0] for name, version in installed.items()} == {
        name: pinned[name] for name in installed
    }
