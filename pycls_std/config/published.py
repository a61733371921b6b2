"""Compare the options of a run with the recipe of its published scores: those of the config that states them."""

import re
from typing import Any

from pycls_std.config.catalogue import Catalogue
from pycls_std.config.reading import merge
from pycls_std.config.setting import BY_FOLDER, dataset_name

SECTION = "PUBLISHED."
# Keys of the section besides the scores.
BESIDE = ("PUBLISHED.SOURCE", "PUBLISHED.CHANGED")
CHECKPOINT = re.compile(r".*/([^/]+/seed\d+/checkpoints/[^/]+)")  # of a run, in whatever folder


def stack(levels: list[dict]) -> tuple[dict, dict]:
    """Return the merged settings of files, each based on the one before it, and of the command line.

    Also return their recipe: the settings up to the last level that states published scores, {} if none does. Scores of
    the levels before it belong to another recipe, and are dropped.
    """
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    for level in levels:
        states = any(_is_score(key) for key in level)
        if states:
            settings = {key: pair for key, pair in settings.items() if not _is_score(key)}
        settings = merge(settings, level)
        recipe = settings if states else recipe
    return settings, recipe


def changed_recipe(catalogue: Catalogue, recipe: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Return "KEY is .., not .." for the options of a run that differ from a recipe; [] if it has no published score.

    Those that may differ between the runs of a row, such as the seed, may differ here, too. Values are compared as they
    are written, but weights from a run of this runner by its name, seed and file: a table's runs have their own folder.
    """
    if not any(value >= 0 for key, value in recipe.items() if _is_score(key)):
        return []
    idle = catalogue.idle(recipe) & catalogue.idle(options)
    keys = [key for key in sorted((recipe.keys() | options.keys()) - idle) if _differ(catalogue, key, recipe, options)]
    counted = [key for key in keys if (option := catalogue.of(key)) is None or option.rows and option.recipe]
    changed = [f"{key} is {options.get(key)}, not {recipe.get(key)}" for key in counted]
    names = [dataset_name(flat) for flat in (options, recipe)]
    if names[0] != names[1] and "DATA.NAME" not in counted:
        changed.insert(0, f"DATA.ROOT is {names[0]}, not {names[1]}")
    classes = [flat["MODEL.NUM_CLASSES"] for flat in (options, recipe)]  # 0 = as many as the data has
    by_folder = options["DATA.NAME"] in BY_FOLDER  # of which only the name is known, and not what is in it
    if classes[1] and classes[0] != classes[1] and (classes[0] or by_folder):
        changed.append(f"MODEL.NUM_CLASSES is {classes[0]}, not {classes[1]}")
    return changed


def _differ(catalogue: Catalogue, key: str, recipe: dict[str, Any], options: dict[str, Any]) -> bool:
    option, values = catalogue.of(key), [recipe.get(key), options.get(key)]
    if option and option.path:
        values = [of_the_run(value) for value in values]
    return values[0] != values[1]


def of_the_run(value):
    """Return a path of weights, or a list of them, without the folder of all runs: a run's name, seed and file."""
    if isinstance(value, list):
        return [of_the_run(each) for each in value]
    return CHECKPOINT.sub(r"\1", value) if isinstance(value, str) else value


def _is_score(key: str) -> bool:
    return key.startswith(SECTION) and key not in BESIDE
