"""The OpenAPI description of the admin API (OpenAPI 3.1, which is JSON Schema 2020-12)."""

from __future__ import annotations

from typing import Any, Final

from fedproxy import __version__
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Status

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_FLAG: Final[Schema] = {"type": "boolean"}
_COUNTS: Final[Schema] = {"type": "object", "additionalProperties": _COUNT}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}
_PART: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_MAYBE_SECONDS: Final = {"type": ["number", "null"], "minimum": 0}
_MAYBE_COUNT: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": [*required],
        "additionalProperties": False,
    }


def _array(item: Schema) -> Schema:
    return {"type": "array", "items": item}


_ADDRESS: Final = _object(
    {
        "address": _TEXT,
        "connections": _COUNT,
        "failures": {**_COUNT, "description": "In a row."},
        "aside": {**_FLAG, "description": "It takes no connections, so new ones try others first."},
    }
)


def _list(name: str, item: Schema) -> Schema:
    return _object({name: _array(item)})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_MEMBER: Final = _object(
    {
        "name": _TEXT,
        "url": _TEXT,
        "weight": {"type": "number", "minimum": 0},
        "auto": {**_FLAG, "description": "Whether the edge works the weight out: `weight: auto`."},
        "share": _PART,
        "ramp": {
            "anyOf": [
                _object(
                    {
                        "share": {**_PART, "description": "Of new visitors, in the end."},
                        "progress": {**_PART, "description": "The part of that which it has now."},
                        "reason": {**_TEXT, "description": "Why that changed last, or did not."},
                    }
                ),
                {"type": "null"},
            ],
            "description": "How far a new member has come to its share; null for one without a ramp.",
        },
        "share_actual": {
            "type": ["number", "null"],
            "description": "Of the new visitors of the last hour; null if there were none.",
        },
        "price": {
            "type": "number",
            "description": "What expected-wait adds for its share, in builds that count twice.",
        },
        "launch_seconds": _object({"with_image": _MAYBE_SECONDS, "without_image": _MAYBE_SECONDS}),
        "images_known": _COUNT,
        "prime": _FLAG,
        "state": {"enum": [each.value for each in Intent], "description": "What operators set."},
        "status": {"enum": [each.value for each in Status], "description": "How it is, in one word."},
        "set_by": _MAYBE_TEXT,
        "source": {
            **_TEXT,
            "description": "Where it comes from: `config`, `directory: FILE`, `dns: NAME` or `operator`.",
        },
        "pending": {
            **_FLAG,
            "description": "The store is away: other edges hear later of what operators set of it last.",
        },
        "healthy": _FLAG,
        "reasons": _TEXTS,
        "details": _TEXTS,
        "checks": {"type": "object", "additionalProperties": _FLAG},
        "pods": _COUNTS,
        "quota": _MAYBE_COUNT,
        "breaker": {"enum": [each.value for each in BreakerState]},
        "available": _FLAG,
        "in_flight": _COUNT,
        "max_requests": _COUNT,
        "launches": _COUNT,
        "max_launches": _MAYBE_COUNT,
        "requests": _COUNT,
        "last_resort": {**_COUNT, "description": "Those for which no member was available."},
        "errors": _COUNTS,
        "retries": _COUNTS,
        "outcomes": _COUNTS,
        "failovers": _COUNTS,
        "connections": _object({"idle": _COUNT, "active": _COUNT}),
        "addresses": {
            **_array(_ADDRESS),
            "description": "Those of its name, at most 100; none for a unix socket.",
        },
        "bytes_in": _COUNT,
        "bytes_out": _COUNT,
        "health": _TEXT,
        "versions": _TEXT,
        "dashboard": _MAYBE_TEXT,
    }
)
_EDGE: Final = {
    **_object({"requests": _COUNT, "refused": _COUNTS}),
    "description": "What visitors asked for, and what the edge refused, by reason; since the start.",
}
_MAYBE_TIME: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
_STORE: Final = {
    **_object(
        {
            "place": {
                **_MAYBE_TEXT,
                "description": "A file, or a URL without secrets; null if there is none.",
            },
            "shared": {**_FLAG, "description": "Whether other edges may use it."},
            "up": _FLAG,
            "since": _MAYBE_TIME,
            "commands": {**_COUNTS, "description": "How many were sent to it, by result."},
            "dropped": {**_COUNT, "description": "Hints of which other edges were never told."},
            "pending": {**_TEXTS, "description": "Members of which an override waits for it."},
        }
    ),
    "description": "Where what operators set is kept, and what edges share.",
}
_ONE_EDGE: Final = _object(
    {
        "name": _TEXT,
        "id": {**_TEXT, "description": "Of its run."},
        "here": {**_FLAG, "description": "It is the one that answers."},
        "version": _MAYBE_TEXT,
        "config": {**_MAYBE_TEXT, "description": "A digest: equal for equal configs."},
        "workers": _MAYBE_COUNT,
        "connections": _MAYBE_COUNT,
        "requests": _MAYBE_COUNT,
        "in_flight": _MAYBE_COUNT,
        "launches": _MAYBE_COUNT,
        "started_at": _MAYBE_TIME,
        "probes": {**_FLAG, "description": "It probes the members itself."},
        "disagrees": {**_TEXTS, "description": "What it should have in common with this one and has not."},
    }
)
_MEMBER_ACROSS: Final = _object(
    {
        "name": _TEXT,
        "in_flight": _COUNT,
        "launches": _COUNT,
        "requests": _COUNT,
        "status": {"type": "object", "additionalProperties": _TEXTS},
        "weights": {"type": "object", "additionalProperties": _TEXTS},
    }
)
_EVENT: Final = _object(
    {
        "time": {"type": "string", "format": "date-time"},
        "level": {"enum": ["info", "warning", "error"]},
        "event": _TEXT,
        "member": _MAYBE_TEXT,
        "who": _MAYBE_TEXT,
        "message": _TEXT,
    }
)
_RANKED: Final = _object(
    {
        "member": _TEXT,
        "score": {"type": ["number", "null"], "description": "The highest wins."},
        "share": {"type": "number", "minimum": 0},
        "in_flight": _COUNT,
        "out": {"type": ["string", "null"], "description": "Why it gets no new visitor; null if it does."},
    },
    {
        "wait": {"type": "number", "description": "With expected-wait: the seconds until it is ready there."},
        "price": {"type": "number", "description": "With expected-wait: seconds, for its share."},
        "image": {
            "type": ["number", "string"],
            "description": "With expected-wait: the chance that it has the image, or `building`.",
        },
    },
)
_EXPLANATION: Final = _object(
    {
        "kind": {"enum": ["page", "launch", "session"]},
        "route": {**_MAYBE_TEXT, "description": "The path of the route that matched; null for none."},
        "action": _TEXT,
    },
    {
        "refused": {**_TEXT, "description": "Why it would be refused: as in `fedproxy_rejected_total`."},
        "balancer": _TEXT,
        "key": {**_MAYBE_TEXT, "description": "What ranks the members."},
        "cookie": {**_MAYBE_TEXT, "description": "The member that the cookie names."},
        "session": {**_MAYBE_TEXT, "description": "Where the session is known to run."},
        "member": {**_MAYBE_TEXT, "description": "Who would be asked."},
        "origin": {**_TEXT, "description": "Where the member comes from: as `source` of a member."},
        "source": {**_TEXT, "description": "What chose it: as in `fedproxy_affinity_total`."},
        "last_resort": _FLAG,
        "next": {**_TEXTS, "description": "Who would be asked after it, if each fails."},
        "ranking": {"type": "array", "items": _RANKED},
    },
)
_DIFFERENCE: Final = _object({"key": _TEXT, "before": {}, "after": {}})
_FAULT: Final = _object({"path": _TEXT, "message": _TEXT}, {"line": _COUNT, "column": _COUNT, "file": _TEXT})
_SCHEMAS: Final[dict[str, Schema]] = {
    "Member": _MEMBER,
    "Edge": _ONE_EDGE,
    "MembersAcross": {
        **_object({"members": _array(_MEMBER_ACROSS), "edges": _COUNT, "missing": _TEXTS}),
        "description": "Sums over the edges; by status and by weight the names of the edges that say so.",
    },
    "Event": _EVENT,
    "Explanation": _EXPLANATION,
    "Preview": _object({"dry_run": {"const": True}, "changes": {"type": "array", "items": _DIFFERENCE}}),
    "Waiting": {
        **_object({"pending": {"const": True}}),
        "description": "Done here; the store is away, so the other edges hear of it later.",
    },
    "Error": _object(
        {"error": _TEXT, "detail": _TEXT, "request_id": _TEXT},
        {"faults": {"type": "array", "items": _FAULT}},
    ),
    "Change": {
        "type": "object",
        "properties": {
            "state": {"enum": [each.value for each in Intent]},
            "weight": {
                "anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1e18}, {"const": "auto"}]
            },
        },
        "additionalProperties": False,
        "minProperties": 1,
    },
    "Settings": {
        "type": "object",
        "description": "A member as in the config: see docs/configuration.md.",
        "properties": {"url": _TEXT},
        "required": ["url"],
    },
    "Question": _object(
        {"url": {**_TEXT, "description": "A path, or a URL whose host counts too."}},
        {
            "cookie": {**_TEXT, "description": "The value of the affinity cookie."},
            "accept": _TEXT,
            "client": {**_TEXT, "description": "The visitor's address."},
        },
    ),
    "Who": _object(
        {
            "name": {**_TEXT, "description": "The token's, as in the log of what is done with it."},
            "rights": {"enum": ["read", "write"]},
            "reading": {"enum": ["open", "token"], "description": "Whether reading needs a token."},
        }
    ),
    "Ready": _object(
        {"ready": _FLAG, "listening": _FLAG, "available": _TEXTS},
        {"not_turning": {"type": "array", "items": _object({"pid": _COUNT, "seconds": {"type": "number"}})}},
    ),
    "Live": _object(
        {"live": _FLAG},
        {"not_turning": {"type": "array", "items": _object({"pid": _COUNT, "seconds": {"type": "number"}})}},
    ),
}

_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The member's name.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._~+@:-]{0,63}$"},
}
_DRY: Final = {
    "name": "dry_run",
    "in": "query",
    "description": "Only say what would change.",
    "schema": {"type": "boolean"},
}
_TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]
_OPEN: Final[list[dict[str, list[str]]]] = [{}]


def _answers(**answers: Schema | None) -> dict[str, Any]:
    """Responses by status: `ok` is 200, and every other one is an error of the API."""
    found: dict[str, Any] = {}
    for name, schema in answers.items():
        status = name.removeprefix("s")
        content = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
        found[status] = {"description": _MEANS[status], **content}
    return found


_MEANS: Final = {
    "200": "Done, or what was asked for.",
    "201": "The member joined.",
    "204": "Done; there is nothing to tell.",
    "401": "The token is missing or wrong.",
    "403": "The token may not do this, or the config has none that may.",
    "404": "No member has this name.",
    "408": "The body stopped arriving.",
    "413": "The body is too large.",
    "422": "The input is wrong; nothing changed.",
    "500": "It cannot be saved; nothing changed.",
    "503": "Not at the moment.",
    "507": "There is no room to save it; nothing changed.",
}
_ERROR: Final = _ref("Error")


def _get(summary: str, schema: Schema, *more: dict[str, Any], **answers: Schema | None) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [*more],
        "responses": _answers(s200=schema, s401=_ERROR, s422=_ERROR, **answers),
    }


def _write(
    summary: str, body: str | None, *parameters: dict[str, Any], **answers: Schema | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": summary,
        "security": _TOKEN,
        "parameters": [*parameters, _DRY],
        "responses": _answers(**answers, s401=_ERROR, s403=_ERROR, s422=_ERROR, s500=_ERROR, s507=_ERROR),
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        found["responses"] |= _answers(s408=_ERROR, s413=_ERROR)
    return found


def _either(*names: str) -> Schema:
    return {"anyOf": [_ref(name) for name in (*names, "Preview")]}


def _paths() -> dict[str, Any]:
    member, unknown = _ref("Member"), {"s404": _ERROR}
    own = {
        "name": "own",
        "in": "query",
        "description": "Without what operators changed at run time.",
        "schema": {"type": "boolean"},
    }
    fleet = {
        "name": "fleet",
        "in": "query",
        "description": "As all edges see them.",
        "schema": {"type": "boolean"},
    }
    edges = _object({"store": _STORE, "edges": _array(_ref("Edge"))})
    reloaded = _object({"reloaded": {"const": True}})
    certificate = _object({"name": _TEXT, "expires": {"type": "string", "format": "date-time"}})
    return {
        "/members": {
            "get": _get(
                "All members, as this edge or as all edges of the fleet see them",
                {"anyOf": [_object({"members": _array(member), "edge": _EDGE}), _ref("MembersAcross")]},
                fleet,
                s503=_ERROR,
            )
        },
        "/members/{name}": {
            "get": _get("One member", member, _NAME, **unknown),
            "patch": _write(
                "Set a member's state, weight or both", "Change", _NAME, s200=_either("Member"), **unknown
            ),
            "put": _write(
                "Add a member, or replace its settings",
                "Settings",
                _NAME,
                s200=_either("Member", "Waiting"),
                s201=member,
                s204=None,
            ),
            "delete": _write("Remove a member", None, _NAME, s200=_either("Waiting"), s204=None, **unknown),
        },
        "/edges": {
            "get": _get("The edges of the fleet, this one first, and the store that they share", edges)
        },
        "/config": {"get": _get("The config in force, secrets masked", {"type": "object"}, own)},
        "/reload": {
            "post": _write("Read the config again", None, s200={"anyOf": [reloaded, _ref("Preview")]})
        },
        "/explain": {
            "post": {
                "summary": "Why would a request go where it goes?",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref("Question")}},
                },
                "responses": _answers(
                    s200=_ref("Explanation"), s401=_ERROR, s408=_ERROR, s413=_ERROR, s422=_ERROR, s503=_ERROR
                ),
            }
        },
        "/whoami": {
            "get": {
                "summary": "Whose token is this, and what may it do?",
                "security": _TOKEN,
                "responses": _answers(s200=_ref("Who"), s401=_ERROR),
            }
        },
        "/log": {"get": _get("The recent events, the newest last", _list("events", _ref("Event")))},
        "/certificates": {"get": _get("The certificates in use", _list("certificates", certificate))},
        "/health/live": {
            "get": {
                "summary": "Do all workers respond?",
                "security": _OPEN,
                "responses": _answers(s200=_ref("Live"), s503=_ref("Live")),
            }
        },
        "/health/ready": {
            "get": {
                "summary": "Would a visitor get an answer from some member?",
                "security": _OPEN,
                "responses": _answers(s200=_ref("Ready"), s503=_ref("Ready")),
            }
        },
    }


def description() -> dict[str, Any]:
    """The whole description. The pages, `/metrics` and `/events` are no JSON, and are not in it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The admin API of fedproxy",
            "version": __version__,
            "description": "Reading needs a token only with `admin.read: token`; writes always need one.",
        },
        # Reading is open, or needs a token: either is in order.
        "security": [{}, {"token": []}],
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
