"""Whether the model hub has a name, asked once and briefly before anything is fetched from it.

The hub's own client tries again for a minute where there is no network, and what comes of it names neither.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError, first_line

log = logging.getLogger(__name__)

#: Files of which a checkpoint has one.
SIGNS = ("config.json", "adapter_config.json")
#: Seconds for one answer, and for finding the hub's address with it, which no client can bound.
ANSWER, WHOLE = 5.0, 6.0
INSTEAD = (
    "Give the folder of a copy, or leave the model out to use the one inside the package. Where there is a network, a "
    "model that was loaded stays in the cache (HF_HOME), and HF_HUB_OFFLINE=1 reads it from there without asking."
)


class _Unreachable(Exception):
    """The hub did not answer, or not with a word about the model."""


def reach(name: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """How to fetch the files of `name`: `where`, kept to the cache if the hub cannot be reached and they are there.

    Parameters
    ----------
    name : str
        A folder (nothing is asked then) or a name on the hub.
    where : mapping
        Options of `from_pretrained` that say where files come from.

    Raises
    ------
    AdaptPruneError
        The hub cannot be reached and the cache has nothing, or the hub has no such model, no such revision, or does not
        give it to us. The message lacks the name.
    """
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.utils import validate_repo_id

    if Path(name).is_dir():
        return dict(where)
    if Path(name).exists():
        raise AdaptPruneError(
            "it is neither a folder here nor a name on the hub, but a file: give the folder it is in."
        )
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise AdaptPruneError(
            f"it is neither a folder here nor a name that the model hub could have ({first_line(error)}). {INSTEAD}"
        ) from None
    cached = _in_cache(name, where)
    if HF_HUB_OFFLINE or where.get("local_files_only"):
        if not cached:
            why = "HF_HUB_OFFLINE" if HF_HUB_OFFLINE else "local_files_only"
            cache = where.get("cache_dir") or HF_HUB_CACHE
            raise AdaptPruneError(
                f"it is neither a folder here nor in the cache ({cache}), and {why} keeps from asking the hub. "
                f"{INSTEAD}"
            )
        return dict(where)
    try:
        _ask_in_time(name, where)
    except _Unreachable as error:
        if not cached:
            raise AdaptPruneError(f"it is no folder here, and the model hub {error}. {INSTEAD}") from None
        log.warning("the model hub %s: %r is read from the cache", error, name)
        return {**where, "local_files_only": True}
    return dict(where)


def is_from_network(error: BaseException) -> bool:
    """Whether an exception comes from a connection, of whichever HTTP library the hub's client uses."""
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(roots & {"httpx", "httpx2", "httpcore", "requests", "urllib3"}) or isinstance(error, ConnectionError)


def _in_cache(name: str, where: Mapping[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    places = (_path(sign, where) for sign in SIGNS)
    return any(
        isinstance(
            try_to_load_from_cache(name, place, cache_dir=where.get("cache_dir"), revision=where.get("revision")), str
        )
        for place in places
    )


def _path(filename: str, where: Mapping[str, Any]) -> str:
    return f"{where['subfolder']}/{filename}" if where.get("subfolder") else filename


def _ask_in_time(name: str, where: Mapping[str, Any]) -> None:
    """`_ask`, in a thread that is left behind if it does not come back: looking up an address cannot be bounded."""
    found: list[Exception | None] = []

    def ask() -> None:
        try:
            _ask(name, where)
            found.append(None)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WHOLE)
    if not found:
        raise _Unreachable(f"{_hub()} did not answer within {WHOLE:g} seconds")
    if found[0] is not None:
        raise found[0]


def _ask(name: str, where: Mapping[str, Any]) -> None:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(name, _path(SIGNS[0], where), revision=where.get("revision"))
    try:
        get_hf_file_metadata(url, token=where.get("token"), timeout=ANSWER)
    except errors.EntryNotFoundError:
        return  # the model is there; it may be an adapter
    except errors.GatedRepoError:
        raise AdaptPruneError(
            f"its owner gives it to those who ask: accept the terms on its page at {_hub()}, then `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise AdaptPruneError(
            f"it is neither a folder here nor a model on the hub {_hub()}: check the spelling. A private one needs a "
            "token: `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise AdaptPruneError(f"it has no revision {where.get('revision') or 'main'!r} on the hub {_hub()}.") from None
    except errors.HfHubHTTPError as error:
        _explain(error)
    except errors.LocalTokenNotFoundError as error:
        raise AdaptPruneError(f"{first_line(error)}") from None
    except Exception as error:  # of whichever HTTP library the client uses
        reason = first_line(error).rstrip(".")
        raise _Unreachable(f"{_hub()} cannot be reached ({reason}): there is no network, or no way there") from None


def _explain(error: Any) -> None:
    """Raise for an answer that says nothing of the model."""
    status = error.response.status_code
    if status == 404:
        return  # a mirror that does not say what is missing
    if status in (401, 403):
        raise AdaptPruneError(
            f"the hub {_hub()} refuses it to us ({status}): the token is wrong or has no right to it; `hf auth login` "
            "sets another."
        ) from None
    raise _Unreachable(f"{_hub()} answered {status}: it has troubles of its own, try again later") from None


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
