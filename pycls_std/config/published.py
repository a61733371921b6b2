"""A published score belongs to a recipe: the options of the file that states it. Whatever changes them leaves it."""

import re
from typing import Any

from pycls_std.config.catalogue import Catalogue
from pycls_std.config.reading import merge
from pycls_std.config.setting import BY_FOLDER, dataset_name

SECTION = "PUBLISHED."
# What is said beside the scores.
BESIDE = ("PUBLISHED.SOURCE", "PUBLISHED.CHANGED")
CHECKPOINT = re.compile(r".*/([^/]+/seed\d+/checkpoints/[^/]+)")  # of a run, in whatever folder


def stack(levels: list[dict]) -> tuple[dict, dict]:
    """Return the settings of files, each based on the one before it, and of the command line, as one.

    And those up to the last level that states published scores: their recipe, {} if none does. Scores of the levels
    before it are those of another recipe, and gone.
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
    """Return "KEY is .., not .." of the options of a run that are not those of a recipe; none if no score is published.

    Those that may differ between the runs of a row, such as the seed, may differ here, too. Values are compared as they
    are written, but weights of a run made here by its name, seed and file: a table has runs in a folder of its own.
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
    """Return a path of weights, or a list of them, without the folder that the runs lie in: name, seed and file."""
    if isinstance(value, list):
        return [of_the_run(each) for each in value]
    return CHECKPOINT.sub(r"\1", value) if isinstance(value, str) else value


def _is_score(key: str) -> bool:
    return key.startswith(SECTION) and key not in BESIDE
