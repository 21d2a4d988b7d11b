"""What can go wrong on S3, by what a caller can do about it."""

from ..errors import ConvergateError, OutsideError


class S3Error(OutsideError):
    """S3 cannot be reached, or refused."""


class S3NotFoundError(S3Error):
    """There is no such object, or no such bucket."""


class BucketNotFoundError(S3NotFoundError):
    """There is no such bucket: nothing is known of what is in it."""


class UploadGoneError(S3NotFoundError):
    """A multipart upload is none that the server knows."""


class S3DeniedError(S3Error):
    """The credentials, or their policy, do not allow it."""


class BrokenOffError(S3Error):
    """An answer came in part or cannot be read; the next one may be whole."""


class ObjectExistsError(S3Error):
    """A create-only write met an object, or a conditional one met another version."""


class DamagedError(S3Error):
    """An object is shorter than it should be, or holds other bytes, also when it is read again."""


class AlteredError(ConvergateError):
    """A document is not the one that its step stored."""
