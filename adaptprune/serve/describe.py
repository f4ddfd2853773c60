"""The OpenAPI schema of the routes, for /docs and for tools that read it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from adaptprune.serve.schemas import ChatRequest

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    "400": "A mistake in the request; the message says which and what is allowed",
    "401": "The API key is missing or wrong",
    "403": "The Host header names another server",
    "404": "There is no such model",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not application/json",
    "429": "The queue is full; Retry-After says when to try again",
    "500": "The engine failed",
    "503": "Out of memory, or shutting down",
    "504": "Not finished within the time limit",
}
STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}


def describe(app: FastAPI) -> None:
    """Give an application the schema of what it takes: the body is validated by `schemas.parse`, not by FastAPI."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _fill(FastAPI.openapi(app))
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def _fill(document: dict[str, Any]) -> dict[str, Any]:
    request = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = document.setdefault("components", {}).setdefault("schemas", {})
    parts.update(request.pop("$defs", {}))
    parts.update({"ChatRequest": request, "Error": ERROR})
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = document["paths"]
    chat = paths["/v1/chat/completions"]["post"]
    chat["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
    chat["responses"] = {"200": _chat(), **_errors(*STATUSES)}
    for path, item in paths.items():
        for operation in item.values():
            if path.startswith("/v1"):
                operation["security"] = [{"key": []}, {}]
            operation["responses"].pop("422", None)
    paths["/v1/models"]["get"]["responses"].update(_errors("401", "403"))
    paths["/v1/models/{name}"]["get"]["responses"].update(_errors("401", "403", "404"))
    for path in ("/health", "/ready"):
        both = {"200": "Yes", "503": "No"}
        paths[path]["get"]["responses"] = {
            code: {"description": text, "content": {"application/json": {"schema": STATUS}}}
            for code, text in both.items()
        }
    paths["/metrics"]["get"]["responses"] = {
        "200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    return document


def _chat() -> dict[str, Any]:
    whole = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
        },
    }
    stream = {"type": "string", "description": "chat.completion.chunk objects as server-sent events, if stream=true"}
    content = {"application/json": {"schema": whole}, "text/event-stream": {"schema": stream}}
    return {"description": "The answer", "content": content}


def _errors(*codes: str) -> dict[str, Any]:
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {code: {"description": STATUSES[code], "content": reference} for code in codes}
