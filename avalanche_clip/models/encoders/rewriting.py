"""Bring files of earlier versions into the present form."""

from __future__ import annotations

from pathlib import Path

from avalanche_clip.common.arrays import read_safetensors, write_tensors
from avalanche_clip.common.files import found_in, read_json, require_file, write_json
from avalanche_clip.models.encoders import weights
from avalanche_clip.models.encoders.folder import USAGE_FILE, renew_model_file
from avalanche_clip.models.encoders.torch_files import read_torch_file
from avalanche_clip.models.text import vocabulary_storage
from avalanche_clip.models.text.growing import FILE_NAME, GrowingTokenizer


def rewrite_file(path: str | Path) -> Path:
    """Give a file of an earlier version the checksum that readers ask for now.

    For expert adapters, weights of :func:`save_weights`, usage counts
    (``token_usage.safetensors``), growing tokenizers (``growing_tokenizer.json``)
    and vocabularies of :func:`save_vocabulary`. The file is replaced at once. Earlier
    versions stored no checksum, so damage that happened before is not found unless
    it makes the file unreadable; use a file you trust. A file that has a checksum is
    verified and left as it is.

    :param path: the file, or the folder of :meth:`DualEncoder.save`, all of whose
        files are rewritten.
    :return: its path.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or none of these.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        require_file(path / weights.CONFIG_FILE, "give a folder of DualEncoder.save")
        for name in (weights.WEIGHTS_FILE, USAGE_FILE, FILE_NAME):
            if (path / name).is_file():
                rewrite_file(path / name)
        renew_model_file(path)
        return path
    path = require_file(path)
    if path.suffix == ".json":
        _rewrite_json(path)
    elif found_in(path) == "a zip archive":
        _rewrite_vocabulary(path)
    else:
        _rewrite_safetensors(path)
    return path


def _rewrite_json(path: Path) -> None:
    content = read_json(path, dict)
    if "checksum" in content:
        read_json(path, checksum=True)
        return
    with vocabulary_storage.naming(path, "a growing tokenizer"):
        GrowingTokenizer.from_state_dict(content)
    write_json(path, content, checksum=True, indent=None)


def _rewrite_safetensors(path: Path) -> None:
    tensors, metadata = read_safetensors(path, required=False)
    try:
        read_safetensors(path)
    except ValueError:  # it has none
        write_tensors(path, tensors, metadata)


def _rewrite_vocabulary(path: Path) -> None:
    stored = read_torch_file(path)
    with vocabulary_storage.naming(path, "a vocabulary"):
        if stored["format"] != 1:
            raise ValueError("its format is not 1")
        state = vocabulary_storage.checked(stored["vocabulary"])
    vocabulary_storage.write(state, path)
