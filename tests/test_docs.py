"""README tells the truth: its commands, its tree, its variables, its mapping contract."""

import inspect
import re
import subprocess

from features import mapping
from features.cli import STAGES, commands, stage_of
from features.schema import SOURCES
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return {line for line in listed if line}


def test_every_make_recipe_in_the_readme_exists_and_is_listed_by_help() -> None:
    recipes = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", README, re.M)) != set()
    named = {a or b for a, b in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", README, re.M)}
    assert named <= recipes
    assert {"run", "test", "check", "bench", "serve", "ui", "clean", "help"} <= recipes


def test_every_command_is_in_the_readme_and_every_named_one_exists() -> None:
    named = set(re.findall(r"`(?:[A-Z_]+=\S+ )?holdfast ([a-z-]+)", README))
    assert named == set(commands())
    assert set(STAGES) <= set(commands())


def test_every_option_of_a_command_shown_exists() -> None:
    for line in re.findall(r"`(?:[A-Z_]+=\S+ )?holdfast ([^`]+)`", README):
        name, *words = line.split()
        if not any(word.startswith("--") for word in words):
            continue
        parameters = set(inspect.signature(stage_of(commands()[name])).parameters)
        assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= parameters


def test_every_environment_variable_of_the_code_is_documented() -> None:
    code = "".join((ROOT / file).read_text() for file in sorted(tracked()) if file.endswith(".py") and not file.startswith("tests/"))
    used = set(re.findall(r"HOLDFAST_[A-Z]+(?:_[A-Z]+)*", code)) | {"HOLDFAST_HOME"}
    assert used == set(re.findall(r"^\| `(HOLDFAST_[A-Z_]+)` \|", README, re.M))


def test_the_tree_lists_every_file_of_the_product_and_nothing_else() -> None:
    block = README.split("## The tree")[1].split("```")[1]
    listed, folders = set(), [""]
    for line in block.split("holdfast/\n", 1)[1].splitlines():
        if not line.strip():
            continue
        depth, name = (len(line) - len(line.lstrip())) // 2 - 1, line.split()[0]
        folders = folders[: depth + 1]
        path = folders[depth] + name
        (folders.append(path) if name.endswith("/") else listed.add(path))
    product = {file for file in tracked() if not file.startswith(("tests/", ".")) and not file.endswith("__init__.py")}
    assert listed == product


def test_the_table_of_columns_is_the_schema() -> None:
    for name, source in SOURCES.items():
        columns = ", ".join(column.name if column.required else f"[{column.name}]" for column in source.columns)
        assert f"| {name} | {columns} |" in README


def test_the_embedded_data_are_the_ones_attributed() -> None:
    from features.files import sha256

    attribution = (ROOT / "features/data/ATTRIBUTION.md").read_text()
    assert sha256(mapping.sample_file().with_suffix(".parquet")) in attribution


def test_no_file_names_a_place_of_one_machine() -> None:
    for file in tracked():
        if not file.endswith((".parquet", ".png", ".svg")):
            assert "/" + "work/" not in (ROOT / file).read_text(), file


def test_the_catalogue_of_features_is_the_one_in_the_docs() -> None:
    from features.catalogue import entries, to_markdown

    page = (ROOT / "features/FEATURES.md").read_text()
    assert page == to_markdown(entries()), "run: holdfast features list --markdown > features/FEATURES.md"
    assert len(entries()) >= 250
