"""Reading pickles whose makers are not trusted."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar


class BoundedUnpickler(pickle._Unpickler):
    """A pickle machine whose memory stays near the size of what it reads.

    That in C takes gigabytes for an entry with a large number. Subclasses say in
    ``find_class`` what a pickle may name; here it is nothing.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def load_bytearray8(self) -> None:
        """Read bytes first, and make room for them then."""
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        data = self.read(size)  # type: ignore[attr-defined]
        if len(data) != size:
            raise pickle.UnpicklingError(f"it ends within {size} declared bytes")
        self.append(bytearray(data))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
