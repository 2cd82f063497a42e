# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Settings: what editors offer is what the schema knows, every default is valid, and mistakes are named."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest

from lowrank_hooks import NORMS
from lowrank_plugin import section
from lowrank_plugin.errors import ConfigurationError
from lowrank_plugin.settings import SCHEMA, Settings

SECTIONS = {
    section.Section: SCHEMA,
    section.CalibrationSection: SCHEMA["properties"]["calibration"],
    section.DistillationSection: SCHEMA["properties"]["distillation"],
    section.RuntimeSection: SCHEMA["properties"]["runtime"],
    section.StabilitySection: SCHEMA["properties"]["stability"]["anyOf"][1],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_what_editors_offer_is_what_the_schema_knows(section: Any) -> None:
    assert section.__annotations__.keys() == SECTIONS[section]["properties"].keys()
    required = {key for key in section.__annotations__ if key in section.__required_keys__}
    assert required == set(SECTIONS[section].get("required", []))


@pytest.mark.parametrize("key", SCHEMA["properties"])
def test_words_that_editors_offer_are_those_that_are_valid(key: str) -> None:
    schema = SCHEMA["properties"][key]
    if "enum" in schema:
        words = set()
        for each in [get_type_hints(section.Section)[key], *get_args(get_type_hints(section.Section)[key])]:
            words |= {word for word in get_args(each) if isinstance(word, str)}
        assert words == set(schema["enum"]) - {None}


def test_every_norm_is_valid() -> None:
    for name in NORMS:
        assert Settings.from_mapping({"budget": {"macs": 0.5}, "norm": name}).norm == name


def test_defaults_are_valid_and_come_back() -> None:
    written = json.loads(json.dumps(Settings(budget={"macs": 0.5}).to_mapping()))
    jsonschema.validate(written, SCHEMA)
    assert written.keys() == SCHEMA["properties"].keys() - {"output"}
    assert Settings.from_mapping(written) == Settings(budget={"macs": 0.5})


def test_every_key_says_what_is_expected() -> None:
    assert all("description" in schema for schema in SCHEMA["properties"].values())
    assert SCHEMA["properties"].keys() == {each.name for each in fields(Settings)}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"budgt": {"macs": 0.5}}, "Unknown key 'budgt' .* Did you mean 'budget'"),
        ({"calibration": {"sample": 3}}, r"\['calibration'\]. Did you mean 'samples'"),
        ({"stability": {"slack": 0}}, r"\['stability'\]\['slack'\]: expected a number above 0"),
        (
            {"stability": True},
            r"Invalid value True .*\['stability'\]: expected \{\"slack\": s\} with s above 0, or false",
        ),
        ({"distillation": {"steps": 0}}, r"\['steps'\]: expected a whole number from 1, the most solver steps"),
        ({"norm": "l2"}, '"frobenius", "covariance", "two-sided" or null'),
        ({"seed": 1}, 'Nothing to do: give a "budget"'),
    ],
    ids=["key", "nested key", "number", "alternatives", "nested number", "word", "nothing"],
)
def test_mistakes_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings.from_mapping(section)
