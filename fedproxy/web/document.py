"""The federation as one JSON document, for programs and status pages, and the JSON Schema of it.

`GET /federation.json` has it with the members' current state; `fedproxy page --format json` makes it of a
config alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fedproxy.decide.snapshot import Status, shares
from fedproxy.web.view import shown_url

if TYPE_CHECKING:
    from fedproxy.config.model import Config, MemberSettings, Organisation
    from fedproxy.decide.snapshot import Snapshot

Schema = dict[str, Any]

#: Where the edge serves the schema.
SCHEMA_PATH: Final = "/federation/schema.json"

# The labels of BinderHub's own checks.
_REGISTRY: Final = "Docker registry"
_HUB: Final = "JupyterHub API"


def live_document(config: Config, members: Sequence[Snapshot], logos: Mapping[str, str]) -> dict[str, Any]:
    """The document with the members' current state. logos: where each is shown, by its URL in the config."""
    parts = shares(members)
    active = config.active_members
    return _document(
        config,
        [
            _entry(config, member.name, active.get(member.name), logos)
            | {
                "status": member.status.value,
                "prime": member.prime,
                "share": round(parts[member.name], 4),
                "response": member.answered,
                "response_within": member.within,
                "registry": member.checks.get(_REGISTRY),
                "hub": member.checks.get(_HUB),
                "pods": {kind: member.pods.get(kind) for kind in ("user", "build")},
                "quota": member.quota,
                "checks": dict(member.checks),
            }
            for member in members
        ],
        logos,
    )


def configured_document(config: Config, *, past: bool = False) -> dict[str, Any]:
    """The document according to the config alone: what changes with time is null. past: no members in it."""
    active = {} if past else config.active_members
    logos = {url: url for url in config.logos}
    weights = config.start_weights
    whole = sum(weights.values()) or 1.0
    return _document(
        config,
        [
            _entry(config, name, settings, logos)
            | {
                "prime": settings.prime,
                "share": round(weights[name] / whole, 4),
            }
            for name, settings in active.items()
        ],
        logos,
    )


def _document(config: Config, members: list[dict[str, Any]], logos: Mapping[str, str]) -> dict[str, Any]:
    own = config.public_url
    return {
        "$schema": (own or "") + SCHEMA_PATH,
        "url": own,
        "members": members,
        "past": [
            {
                "name": name,
                "url": shown_url(config, settings.url),
                "run_by": _organisation(settings.run_by, logos),
                "funded_by": _organisation(settings.funded_by, logos),
            }
            for name, settings in config.members.items()
            if not settings.active
        ],
    }


def _entry(
    config: Config, name: str, settings: MemberSettings | None, logos: Mapping[str, str]
) -> dict[str, Any]:
    """A member as far as the config tells; what it does not tell is null."""
    return {
        "name": name,
        "url": shown_url(config, settings.url) if settings is not None else None,
        "status": None,
        "prime": False,
        "share": 0.0,
        "response": None,
        "response_within": None,
        "registry": None,
        "hub": None,
        "pods": {"user": None, "build": None},
        "quota": None,
        "checks": {},
        "run_by": _organisation(settings.run_by, logos) if settings is not None else None,
        "funded_by": _organisation(settings.funded_by, logos) if settings is not None else None,
        "contact": settings.contact if settings is not None else None,
    }


def _organisation(who: Organisation | None, logos: Mapping[str, str]) -> dict[str, Any] | None:
    if who is None:
        return None
    return {"name": who.name, "url": who.url, "logo": logos.get(who.logo) if who.logo else None}


# -- the schema

_FLAG_OR_NULL: Final[Schema] = {"type": ["boolean", "null"]}
_COUNT_OR_NULL: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}


def _object(description: str, properties: dict[str, Schema]) -> Schema:
    """All of them are there. Later versions may add others, so readers have to expect them."""
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "required": [*properties],
    }


def _url(description: str, *, null: bool = True) -> Schema:
    kind = ["string", "null"] if null else "string"
    return {"description": description, "type": kind, "pattern": "^https?://"}


_NAME: Final[Schema] = {"type": "string", "description": "Its name at the edge.", "minLength": 1}
_MEMBER_URL: Final = _url("Where visitors reach it directly; null if they cannot.")
_ORGANISATION: Final[Schema] = {"anyOf": [{"$ref": "#/definitions/organisation"}, {"type": "null"}]}


def _organised(description: str) -> Schema:
    return {"description": description, **_ORGANISATION}


_MEMBER: Final = _object(
    "A member.",
    {
        "name": _NAME,
        "url": _MEMBER_URL,
        "status": {
            "description": "How it is, in one word; null if the document is from a config alone.",
            "enum": [*(each.value for each in Status), None],
        },
        "prime": {
            "description": "Whether it gets the visitors when no member is available.",
            "type": "boolean",
        },
        "share": {
            "description": "Its share of the new visitors; from a config alone, by the weights there.",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        "response": {
            "description": "Whether it told its health when it was last asked; null if it was not asked yet.",
            **_FLAG_OR_NULL,
        },
        "response_within": {
            "description": "The number of seconds that this answer took at most; null if there was none.",
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
        },
        "registry": {
            "description": f"Whether its check `{_REGISTRY}` passed; null if it did not tell.",
            **_FLAG_OR_NULL,
        },
        "hub": {
            "description": f"Whether its check `{_HUB}` passed; null if it did not tell.",
            **_FLAG_OR_NULL,
        },
        "pods": _object(
            "The pods that run there now, as far as it tells.",
            {
                "user": {"description": "Those of visitors.", **_COUNT_OR_NULL},
                "build": {"description": "Those that build images.", **_COUNT_OR_NULL},
            },
        ),
        "quota": {"description": "How many pods it takes; null if it did not tell.", **_COUNT_OR_NULL},
        "checks": {
            "description": "Whether each of its own checks passed, and `versions`: whether it runs what the "
            "prime member runs. Empty if it told of none.",
            "type": "object",
            "additionalProperties": {"type": "boolean"},
        },
        "run_by": _organised("Who runs it."),
        "funded_by": _organised("Who pays for it."),
        "contact": {
            "description": "How to reach those who run it: a web page, or an address of mail.",
            "type": ["string", "null"],
            "pattern": "^(https?://|mailto:)",
        },
    },
)


def schema() -> Schema:
    """The JSON Schema of both documents (draft 7)."""
    past = {
        "name": _NAME,
        "url": _MEMBER_URL,
        "run_by": _organised("Who ran it."),
        "funded_by": _organised("Who paid for it."),
    }
    organisation = {
        "name": {"type": "string", "minLength": 1, "description": "Text, not markup."},
        "url": _url("Its web page."),
        "logo": {
            "description": "An image, relative to the document's own URL; null if there is none to show.",
            "type": ["string", "null"],
        },
    }
    document = _object(
        "The members of a federation of BinderHubs behind one address. Later versions may add properties.",
        {
            "url": _url("The address of the federation, if its config names it."),
            "members": {
                "description": "The members, in the order of the config.",
                "type": "array",
                "items": {"$ref": "#/definitions/member"},
            },
            "past": {
                "description": "Those who served its visitors before.",
                "type": "array",
                "items": {"$ref": "#/definitions/past"},
            },
        },
    )
    document["properties"]["$schema"] = {"description": "Where this schema is.", "type": "string"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A federation of BinderHubs",
        **document,
        "definitions": {
            "member": _MEMBER,
            "organisation": _object("An organisation.", organisation),
            "past": _object("A past member.", past),
        },
    }


def render_schema() -> str:
    """The schema as text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":  # pragma: no cover
    sys.stdout.write(render_schema())
