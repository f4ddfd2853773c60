"""The files of a checkpoint, in a folder or on the hub: JSON and tensors, never code.

Pickles are read through `torch.load(weights_only=True)`. Knows nothing of models.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.models.hub import reach

#: Options of `from_pretrained` that say where files come from. The first two are about one repository only.
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")


class Checkpoint:
    """A folder, or a repository of the hub, of which only the files that are asked for are fetched.

    Parameters
    ----------
    name : str
        Folder or hub name.
    where : mapping
        Any of `HUB_OPTIONS`.
    """

    def __init__(self, name: str, where: Mapping[str, Any]) -> None:
        self.name = name
        self._where = where

    @cached_property
    def where(self) -> dict[str, Any]:
        """The options, once the hub was asked whether it has the name; see `hub.reach` for what that raises."""
        return reach(self.name, self._where)

    def other(self, name: str) -> Checkpoint:
        """Another checkpoint, reached in the same way (its revision and subfolder are its own)."""
        return Checkpoint(name, {key: value for key, value in self.where.items() if key in HUB_OPTIONS[2:]})

    def file(self, filename: str) -> Path | None:
        """Path of one file, fetched if need be; None if the checkpoint has none of that name."""
        from transformers.utils import cached_file

        found = cached_file(self.name, filename, _raise_exceptions_for_missing_entries=False, **self.where)
        return Path(found) if found else None

    def json(self, filename: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file."""
        path = self.file(filename)
        if path is None:
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise AdaptPruneError(f"{filename} is damaged ({error}): fetch it again.") from None
        if not isinstance(value, dict):
            raise AdaptPruneError(f"{filename} is damaged (no JSON object): fetch it again.")
        return value

    def need(self, filename: str) -> dict[str, Any]:
        """The object in a JSON file without which it is no checkpoint."""
        value = self.json(filename)
        if value is None:
            raise AdaptPruneError(f"it has no {filename}: give the folder that has one.")
        return value

    def tensors(self, *stems: str) -> dict[str, Tensor] | None:
        """All tensors of the first file found, on the CPU and memory-mapped where the format allows.

        Parameters
        ----------
        *stems : str
            "model" stands for model.safetensors, model.bin and both cut into shards with an index.
        """
        for suffix in ("safetensors", "bin"):
            for stem in stems:
                index = self.json(f"{stem}.{suffix}.index.json")
                if index is not None:
                    return self._shards(index, f"{stem}.{suffix}.index.json")
                path = self.file(f"{stem}.{suffix}")
                if path is not None:
                    return read_tensors(path)
        return None

    def _shards(self, index: dict[str, Any], index_name: str) -> dict[str, Tensor]:
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise AdaptPruneError(f"{index_name} is damaged (no weight_map): fetch it again.")
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(places.values())):
            # a name that leads out of the folder is not one that any writer of checkpoints makes
            path = self.file(name) if Path(name).name == name else None
            if path is None:
                raise AdaptPruneError(f"{index_name} names {name!r}, which is missing: fetch it too.")
            tensors.update(read_tensors(path))
        lost = sorted(set(places) - set(tensors))
        if lost:
            raise AdaptPruneError(f"{index_name} lists {len(lost)} weights ({lost[0]}, ...) that no file holds.")
        return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, or of one pickle that holds tensors and nothing else."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise AdaptPruneError(f"{path.name} is damaged ({error}): fetch it again.") from None
    try:
        # only the zip format (torch 1.6 and later) can be mapped into memory instead of being read
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise AdaptPruneError(why_refused(path.name, error)) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise AdaptPruneError(f"{path.name} is damaged ({first_line(error)}): fetch it again.") from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise AdaptPruneError(f"{path.name} holds something else than named tensors: it is no set of weights.")
    return dict(value)


def why_refused(name: str, error: Exception) -> str:
    """What to tell of a pickle that `weights_only` did not let pass."""
    if "Unsupported" in str(error) or "GLOBAL" in str(error) or "allowed" in str(error):
        return (
            f"{name} is a pickle that runs code when it is read, and was refused. Get the weights as safetensors, "
            "or save them again from a source that you trust: safetensors.torch.save_file(state_dict, ...)."
        )
    return f"{name} is no file of weights ({first_line(error)}): fetch it again."
