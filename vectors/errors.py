"""Errors of the vectors package. Which HTTP status each becomes is the server's business.

VectorsError
├── InvalidVector               the directions or their description cannot be used; says what and where
│   ├── UnknownFormat           the bytes are in no format that can be read
│   └── CannotSteer             the vector cannot steer this model as asked; names the parameter
├── InvalidData                 labelled data that cannot be used; names the file, the line and what is wrong
├── InvalidMethod               a training method that does not exist, contradicts itself or does not fit the data
├── ModelFailed                 the model gave no answer during training
├── MissingDependency           an optional package that this needs is not installed; says how to get it
├── VectorTooLarge              the file is larger than allowed
├── InvalidVectorName           a name outside the allowed characters
├── InvalidLayers               a list of layers that is empty, unreadable, repeated or beyond any model
├── InvalidPositions            positions that are neither a name nor a window
├── InvalidRevision             not the beginning of a hash, too short, or ambiguous
├── VectorNotFound              no vector has the name
├── RevisionNotFound            the name has no such revision
├── VectorExists                the name is taken
├── RevisionMismatch            the current revision is not the one that was expected
├── StoreLocked                 another process has the store open, or this one closed it
├── StoreCorrupt                a file of the store is missing or damaged; names it
└── StorageFailed               the disk did not take a change, which was undone, or did not give a file
    ├── StorageFull             the disk is full
    └── StorageGone             the folder is no longer where it was opened
"""

from __future__ import annotations

from typing import Self


class VectorsError(Exception):
    """Base of all errors of this package; `str()` of it is a message for people."""


class InvalidVector(VectorsError):
    """The vector cannot be used: wrong shape, values, site, or a file that breaks its format's rules.

    `param` names the offending field or tensor, if there is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        # a file may contain half of a surrogate pair, which JSON in UTF-8 cannot carry
        super().__init__(message.encode(errors="replace").decode())
        self.param = None if param is None else param.encode(errors="replace").decode()


class UnknownFormat(InvalidVector):
    """The bytes are in no format that can be read."""


class CannotSteer(InvalidVector):
    """The vector cannot steer this model as asked. `param` is the parameter at fault, None for the vector as a whole.

    `code` says what is wrong, for programs: `vector_does_not_fit`, `site_not_available`, `invalid_layers`,
    `invalid_scale`, `invalid_interval`, `invalid_operation`, `invalid_positions`.
    """

    def __init__(self, message: str, param: str | None, code: str) -> None:
        super().__init__(message, param)
        self.code = code


UNNAMED = "data"
"""Stands for the file in an `InvalidData` raised without knowing it."""


class InvalidData(VectorsError):
    """Labelled data cannot be used. `file` is its name, `line` the 1-based line (or row), if known."""

    def __init__(self, message: str, file: str = UNNAMED, line: int | None = None) -> None:
        place = f"{file}, line {line}" if line is not None else file
        super().__init__(f"{place}: {message}".encode(errors="replace").decode())
        self.reason = message
        self.file = file
        self.line = line

    def in_file(self, file: str) -> InvalidData:
        """The same error naming `file`, for errors raised without knowing it."""
        return InvalidData(self.reason, file, self.line)


class InvalidMethod(VectorsError):
    """A training method that does not exist, contradicts itself or does not fit the data; `param` names the option."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message.encode(errors="replace").decode())
        self.param = None if param is None else param.encode(errors="replace").decode()


class ModelFailed(VectorsError):
    """The model gave no answer during training: its engine stopped, or its output was not finite."""


class ModelOverflowed(ModelFailed):
    """The model's output was not finite: the steering is too strong."""


class MissingDependency(VectorsError):
    """An optional package is not installed; the message says which and how to get it."""

    @classmethod
    def of(cls, what: str, error: ModuleNotFoundError, extra: str) -> Self:
        """For `what`, which failed with the import error `error`; `extra` installs the package."""
        package = (error.name or "a package").partition(".")[0]
        return cls(f"{what} needs {package}, which is not installed: pip install 'tiller[{extra}]'")


class VectorTooLarge(VectorsError):
    """The file is larger than allowed."""


class InvalidVectorName(VectorsError):
    """A name does not match `vocabulary.NAME_PATTERN`."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name[:80]!r} is not a valid name: expected at most 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )


class InvalidLayers(VectorsError):
    """A list of layers is empty or unreadable, repeats a layer, or has one beyond any model."""


class InvalidPositions(VectorsError):
    """Positions are neither a name nor an object that describes a window."""


class InvalidRevision(VectorsError):
    """A revision is not the beginning of a hash, has fewer than `MIN_REVISION_DIGITS` digits, or is ambiguous."""


class VectorNotFound(VectorsError):
    """No vector has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no vector is named {name!r}")


class RevisionNotFound(VectorsError):
    """The name exists and has no such revision."""

    def __init__(self, name: str, revision: str) -> None:
        super().__init__(f"vector {name!r} has no revision {revision!r}")


class VectorExists(VectorsError):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a vector named {name!r} already exists; use PUT to add a revision")


class RevisionMismatch(VectorsError):
    """The current revision is not the one that the caller expected, so nothing was changed."""


class StoreLocked(VectorsError):
    """Another process has the store open, or this one has closed it."""


class StoreCorrupt(VectorsError):
    """A file of the store is missing or damaged; the message names it."""


class StorageFailed(VectorsError):
    """The disk did not take a change, or did not give a file for a reason that may pass.

    The change was not made. The message says what the disk holds and what the system said, and names no path.
    """


class StorageFull(StorageFailed):
    """The disk is full, or its owner's quota is used up."""


class StorageGone(StorageFailed):
    """What was opened was moved, deleted, replaced or unmounted; it can be used again once it is back."""
