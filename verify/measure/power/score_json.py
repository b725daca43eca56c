"""The JSON document of the command `faults`.

    {"schema": 1, "environment", "command", "finished", "faults": [{"id", "class", ..., "caught", "seeds":
     [outcome, ...]}], "right": [{"spec", "grade", "cases", "accused", ...}], "totals": {...}}

Non-finite numbers are the strings "nan", "inf" and "-inf"; a minimal case is an object, as `replay` takes it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from verify.measure.power.outcome import FaultOutcome
from verify.measure.power.score import RightRow, Row, Score
from verify.strict_json import plain

SCHEMA = 1


def document(score: Score, *, environment: dict[str, Any], command: list[str]) -> str:
    """Return the document as strict JSON.

    Args:
        score: What was found.
        environment: As `verify.environment` tells it.
        command: The command line.
    """
    named = score.named
    data = {
        "schema": SCHEMA,
        "environment": environment,
        "command": command,
        "finished": score.finished,
        "seeds": score.seeds,
        "faults": [_fault(row) for row in score.rows],
        "right": [_right(row) for row in score.right],
        "totals": {
            "faults": len(score.rows),
            "by_class": {str(number): faults for number, faults in score.by_class.items()},
            "not_small": list(score.not_small),
            "internal": score.internal,
            "diagnosis": {
                "measured": named.measured,
                "nameable": named.nameable,
                "rightly": named.rightly,
                "others": named.others,
                "falsely": named.falsely,
                "met": named.met,
            },
        },
        "exit_code": score.exit_code,
    }
    return json.dumps(plain(data), allow_nan=False, indent=1) + "\n"


def _fault(row: Row) -> dict[str, Any]:
    card: dict[str, Any] = msgspec.to_builtins(row.card)
    return {
        **card,
        "spec": row.card.spec,
        "caught": row.caught,
        "wanted": row.wanted,
        "complete": row.complete,
        "properties": list(row.properties),
        "lacking": list(row.lacking),
        "median_cases": row.cases,
        "median_seconds": row.seconds,
        "first_cause": row.cause,
        "broken": list(row.broken),
        "seeds": [_outcome(outcome) for outcome in row.outcomes],
    }


def _outcome(outcome: FaultOutcome) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(outcome)
    del data["outcome"], data["fault"]
    if outcome.smallest is not None:
        data["smallest"]["case"] = json.loads(outcome.smallest.case)
        data["smallest"]["small"] = outcome.smallest.small
    return data


def _right(row: RightRow) -> dict[str, Any]:
    return {
        "spec": row.spec,
        "grade": row.grade,
        "cases": row.cases,
        "accused": row.accused,
        "internal": row.internal,
        "seconds": row.seconds,
        "undecided_share": row.undecided_share,
        "max_ratio": row.max_ratio,
        "cells": [msgspec.to_builtins(cell) for cell in row.cells],
        "accusations": [
            {"property": one.property, "case": json.loads(one.case), "text": one.text}
            for one in row.accusations
        ],
    }
