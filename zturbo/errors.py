"""Every error zturbo raises on purpose, with its HTTP status, its code and a hint.

ZTurboError                       500 internal_error
├── InvalidInput                  400 invalid_value          bad parameters; carries every problem at once
├── Unauthorized                  401 invalid_api_key        no key, or not a valid one
├── TooLarge                      413 body_too_large         the request's body is over the limit
├── WrongMediaType                415 unsupported_media_type the request's body is not JSON
├── Busy                          503 busy                   queue full, loading or draining; says when to retry
├── ConfigError                   500 invalid_config         a setting or a model's config file is wrong
├── WeightsError                  500 invalid_weights        a weights file is missing, damaged or of another model
│   └── WeightsNotFound           404 model_not_found        no such model, folder or file
├── DeviceError                   500 device_unavailable     the device asked for is not there
│   └── DoesNotFit                500 out_of_memory          the model does not fit the device by any plan
├── StorageError                  503 storage_unavailable    records or picture files cannot be read or written now
├── NoSuchFile                    404 file_not_found         there never was a picture file of that name
├── FileGone                      410 file_gone              the picture file was removed after its retention
├── DownloadError                 503 download_failed        the hub cannot be reached, or sent something else
└── Cancelled                     499 cancelled              the caller went away; nothing was delivered

An error's text says what was received and what is allowed; its hint says what to do.
`assert` is kept for our own mistakes.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ZTurboError(Exception):
    """Base of all errors of this package.

    Args:
        message: what went wrong, with what was received.
        hint: what the reader can do about it, or "" where nothing helps.
    """

    status = 500
    code = "internal_error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong member of a request: where, what came, which rule, and the nearest valid value."""

    path: tuple[str, ...]
    message: str
    received: object
    hint: str = ""

    def __str__(self) -> str:
        where = ".".join(self.path)
        return f"{where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class InvalidInput(ZTurboError):
    """The parameters of a request are wrong; `problems` lists all of them."""

    status = 400
    code = "invalid_value"

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "InvalidInput without a problem"
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class Unauthorized(ZTurboError):
    """The request has no key, or one that is not valid."""

    status = 401
    code = "invalid_api_key"


class TooLarge(ZTurboError):
    """The request's body is over the limit."""

    status = 413
    code = "body_too_large"


class WrongMediaType(ZTurboError):
    """The request's body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class Busy(ZTurboError):
    """The request cannot be taken now: the queue is full, the model is loading, or the server is shutting down.

    Args:
        message: why.
        retry_after_s: whole seconds after which trying again makes sense.
    """

    status = 503
    code = "busy"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class ConfigError(ZTurboError):
    """A setting, or a member of a model's config file, is missing or out of range."""

    code = "invalid_config"


class WeightsError(ZTurboError):
    """A weights file cannot be used: it names the file and the reason."""

    code = "invalid_weights"


class WeightsNotFound(WeightsError):
    """There is no model, folder or file of that name."""

    status = 404
    code = "model_not_found"


class DeviceError(ZTurboError):
    """The device or dtype asked for cannot be used on this machine."""

    code = "device_unavailable"


class DoesNotFit(DeviceError):
    """No plan places the model in the memory at hand."""

    code = "out_of_memory"


class StorageError(ZTurboError):
    """Records or files cannot be read or written just now: disk full, read-only, locked, damaged. The message says."""

    status = 503
    code = "storage_unavailable"


class NoSuchFile(ZTurboError):
    """There never was a picture of that name, or the name is none."""

    status = 404
    code = "file_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no file {name[:60]!r}")


class FileGone(ZTurboError):
    """The picture was there, and was removed when its retention was over."""

    status = 410
    code = "file_gone"

    def __init__(self, name: str) -> None:
        super().__init__(f"the file {name} was removed when its retention was over", "draw it again with its seed")


class DownloadError(ZTurboError):
    """The model hub cannot be reached, or what came is not what was asked for."""

    status = 503
    code = "download_failed"


class Cancelled(ZTurboError):
    """The caller asked to stop; work ended at the next step boundary and nothing was delivered."""

    status = 499
    code = "cancelled"
