"""The options of a run: the page of defaults, changed by a YAML file and by the command line, checked and frozen.

This package imports no torch, so that a mistake in a configuration is reported within half a second.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from pycls_std.config.catalogue import Catalogue
from pycls_std.config.checks import check, without_effect
from pycls_std.config.mistake import ConfigError
from pycls_std.config.older import upgraded, upgraded_record
from pycls_std.config.plain_yaml import dump_yaml, load_yaml, short
from pycls_std.config.published import changed_recipe, stack
from pycls_std.config.reading import parse_overrides, read_yaml
from pycls_std.config.setting import (
    BY_FOLDER,
    coerce,
    dataset_name,
    flatten,
    locate,
    same_when_extended,
    set_option,
    tree,
)
from pycls_std.config.shipped import find_config
from pycls_std.core.text import printable, shortened

__all__ = ["BY_FOLDER", "Catalogue", "ConfigError", "complete", "dataset_name", "defaults", "dump", "flatten", "load"]
__all__ += ["out_dir", "restored", "same_when_extended", "typed"]

LOG = logging.getLogger("pycls_std")


def load(path: str, overrides: Sequence[str] = (), *, mode: str = "") -> CfgNode:
    """Return the frozen options of a run: defaults, overridden by the trainer, a YAML file and the command line.

    path: YAML file; its `_BASE_` names another file, relative to it, that is merged first. If either is configs/... and
    does not exist, it is looked for among the package's own configs.
    overrides: `KEY VALUE` pairs and `KEY=VALUE` entries, in any order. mode: the --mode; a warning names overrides that
    only another mode reads.
    Raises ConfigError for an unknown key, a value of the wrong type or out of range, an option that the run does not
    read, and an invalid file.
    """
    catalogue = Catalogue()
    levels = [*read_yaml(find_config(path)), parse_overrides(overrides)]
    settings, recipe = stack(levels)
    options, start, sources = _built(catalogue, settings)
    options.NAME = options.NAME or Path(path).stem
    check(catalogue, flatten(options), start, {"NAME": printable(shortened(path))} | sources)
    last = {key: where for key, (_, where) in (levels[-1] or levels[-2]).items()}  # it may disable what is set below it
    for line in without_effect(catalogue, flatten(options), start, last):
        LOG.warning(line)
    for key, (_, where) in levels[-1].items() if mode else ():
        if key in catalogue.options and catalogue.options[key].mode not in ("", mode):
            LOG.warning(f"{where}: {key} is read by --mode {catalogue.options[key].mode} alone")
    if recipe:
        published = flatten(_built(catalogue, recipe)[0])
        options.PUBLISHED.CHANGED = options.PUBLISHED.CHANGED + changed_recipe(catalogue, published, flatten(options))
    options.freeze()
    return options


def _built(catalogue: Catalogue, settings: dict) -> tuple[CfgNode, dict[str, Any], dict[str, str]]:
    """Return the options of settings, the defaults that these have changed, and where each was set."""
    settings = upgraded(settings)
    dropped = catalogue.optional_sections()
    settings = {
        key: pair for key, pair in settings.items() if not (key in dropped and pair[0] in (None, "null"))
    }  # null has already dropped what a _BASE_ set there
    start = catalogue.defaults({key: value for key, (value, _) in settings.items()})
    options = tree(start)
    for key, (value, where) in settings.items():
        set_option(options, key, value, where, catalogue.of(key))
    return options, start, {key: where for key, (_, where) in settings.items()}


def dump(options: CfgNode) -> str:
    """Return the options as YAML, without unread ones, and without the weights of terms that are off, as by default.

    So a record stays a valid config when methods and terms are added or removed.
    """
    kept = options.clone()
    kept.defrost()
    catalogue, flat = Catalogue(), flatten(options)
    start = catalogue.defaults(flat)
    off = [term.switch for term in catalogue.terms.values() if not flat[term.switch] and not start[term.switch]]
    for key in [*catalogue.unread(flat), *off]:
        section, leaf = locate(kept, key)
        assert section is not None, key  # of these options
        del section[leaf]
    for section in [name for name, value in kept.items() if value == {}]:
        del kept[section]
    return dump_yaml(_plain(kept))


def _plain(node):
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, CfgNode) else node


def complete(record: str | dict) -> dict[str, Any]:
    """Return all options of a record, {"SECTION.KEY": value}; record: a dump, or what YAML reads in one.

    Options that did not exist then have their defaults. Raises ValueError if it holds no options.
    """
    options = load_yaml(record, "a record's options") if isinstance(record, str) else record
    if not isinstance(options, dict):
        raise ValueError("no options")
    found = upgraded_record(flatten(options))
    known = Catalogue().defaults(found)
    sections = {key.partition(".")[0] for key in known if "." in key}
    for key in found:
        if key in sections:
            raise ValueError(f"{key} is a section, and holds no options")
    return known | found


def typed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a record, those of `complete`, with values of their declared types.

    Raises ConfigError that names the key for a value of another type.
    """
    known = Catalogue().options
    declared = {key: (known[key].value, known[key].of) for key in options.keys() & known.keys()}
    return options | {key: coerce(options[key], *kinds, f"its options: {key}") for key, kinds in declared.items()}


def restored(record: str) -> CfgNode:
    """Return the frozen options of a record, as `load` returns those of a config; it may be of another version.

    Options that no longer exist are dropped. Raises ValueError if it holds no options, and ConfigError that names
    the key for a value of another type or out of its range.
    """
    catalogue, found = Catalogue(), complete(record)
    options = tree(catalogue.defaults(found))
    for key, value in found.items():
        if value != {} and locate(options, key)[0] is not None:
            option = catalogue.of(key)
            assert option is not None, key  # every option with a default is declared
            set_option(options, key, value, "its options", option)
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, (int, float)) and (expected := option.refusal(each)):
                    raise ConfigError(f"its options: {key} is {short(value)}, expected {expected}")
    options.freeze()
    return options


def out_dir(options: CfgNode) -> Path:
    """Return the folder of the run record."""
    return Path(options.OUT_DIR or f"runs/{options.NAME}/seed{options.SEED}")


def defaults(trainer: str = "baseline") -> CfgNode:
    """Return all options with their defaults."""
    return tree(Catalogue().defaults({"TRAINER": trainer}))
