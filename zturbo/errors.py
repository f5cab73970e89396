"""Every error zturbo raises on purpose, with its HTTP status, its code and a hint.

ZTurboError                       500 internal_error
├── InvalidInput                  400 invalid_value            bad parameters; carries every problem at once
├── ContentPolicyViolation        400 content_policy_violation the prompt check does not allow the prompt
├── Unauthorized                  401 invalid_api_key          no key, or not a valid one
├── Forbidden                     403 permission_denied        the key is valid, but not for this
│   └── InsufficientCredits       403 insufficient_credits     the balance or the key's spending limit is used up
├── NoSuchKey                     404 key_not_found            no API key with that prefix
├── LastManager                   409 last_management_key      without this key nobody could manage keys
├── Conflict                      409 idempotency_conflict     an Idempotency-Key is in use, or had another body
├── TooLarge                      413 body_too_large           the request's body is over the limit
├── WrongMediaType                415 unsupported_media_type   the request's body is not JSON, or is compressed
├── RangeNotSatisfiable           416 range_not_satisfiable    the picture file ends before the bytes asked for
├── RateLimited                   429 rate_limit_exceeded      the key's requests come too fast, or too many at once
├── Busy                          503 busy                     queue full, loading or draining; says when to retry
├── DeadlinePassed                504 deadline_passed          the request took longer than the server allows
├── ConfigError                   500 invalid_config           a setting or a model's config file is wrong
├── WeightsError                  500 invalid_weights          a weights file is missing, damaged or of another model
│   └── WeightsNotFound           404 model_not_found          no such model, folder or file
├── DeviceError                   500 device_unavailable       the device asked for is not there
│   └── DoesNotFit                500 out_of_memory            the model does not fit the device by any plan
├── DeviceLost                    503 device_lost              the device failed; a new worker takes over
├── SafetyError                   500 safety_checker_failed    the safety checker, named, cannot be loaded or failed
├── StorageError                  503 storage_unavailable      records or picture files cannot be read or written now
├── NoSuchFile                    404 file_not_found           there never was a picture file of that name
├── FileGone                      410 file_gone                the picture file was removed after its retention
├── DownloadError                 503 download_failed          the hub cannot be reached, or sent something else
└── Cancelled                     499 cancelled                the caller went away; nothing was delivered

An error's text says what was received and what is allowed; its hint says what to do.
`assert` is kept for our own mistakes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


class ZTurboError(Exception):
    """Base of all errors of this package.

    Args:
        message: what went wrong, with what was received.
        hint: what the reader can do about it, or "" where nothing helps.
    """

    status = 500
    code = "internal_error"
    retry_after_s: int | None = None
    """Whole seconds after which trying again makes sense, where that is known."""
    headers: Mapping[str, str] = MappingProxyType({})
    """What HTTP says of such an error beside its body."""

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


class ContentPolicyViolation(ZTurboError):
    """The prompt check, where the operator has one, does not allow the prompt; nothing was drawn or charged."""

    status = 400
    code = "content_policy_violation"


class Unauthorized(ZTurboError):
    """The request has no key, or one that is not valid."""

    status = 401
    code = "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})  # RFC 9110, 11.6.1


class Forbidden(ZTurboError):
    """The key is valid, but does not have the scope."""

    status = 403
    code = "permission_denied"


class InsufficientCredits(Forbidden):
    """The request's price is more than what is left of the balance, or of the key's spending limit."""

    code = "insufficient_credits"


class NoSuchKey(ZTurboError):
    """There is no API key with that prefix."""

    status = 404
    code = "key_not_found"

    def __init__(self, prefix: str) -> None:
        super().__init__(f"there is no key with the prefix {prefix[:60]!r}", "`zturbo keys list` shows those there are")


class LastManager(ZTurboError):
    """The last working key with the scope management would lose it, be disabled, be deleted or begin to expire."""

    status = 409
    code = "last_management_key"

    def __init__(self, prefix: str) -> None:
        super().__init__(
            f"the key {prefix} is the last one that works and can manage keys: it stays, enabled, with management and"
            " without a last day",
            "first create another key with the scope management; `zturbo keys` on the server's computer needs none",
        )


class Conflict(ZTurboError):
    """An Idempotency-Key whose first request still runs, or had another body.

    Args:
        message: which of the two.
        hint: what to do.
        retry_after_s: where waiting helps.
    """

    status = 409
    code = "idempotency_conflict"

    def __init__(self, message: str, hint: str, retry_after_s: int | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class RateLimited(ZTurboError):
    """The key sends more requests than it may, in a minute or at once."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlinePassed(ZTurboError):
    """The request waited and ran longer than the server allows; nothing was charged."""

    status = 504
    code = "deadline_passed"


class TooLarge(ZTurboError):
    """The request's body is over the limit."""

    status = 413
    code = "body_too_large"


class WrongMediaType(ZTurboError):
    """The request's body is not declared as JSON, or is compressed."""

    status = 415
    code = "unsupported_media_type"


class RangeNotSatisfiable(ZTurboError):
    """The picture's file has none of the bytes that the Range header asks for."""

    status = 416
    code = "range_not_satisfiable"

    def __init__(self, wanted: str, size_bytes: int) -> None:
        super().__init__(f"the file has {size_bytes} bytes; got the range {wanted[:60]!r}", "ask for bytes=0-")
        self.headers = {"content-range": f"bytes */{size_bytes}"}


class Busy(ZTurboError):
    """The request cannot be taken now: the queue is full, the model is loading, or the server is shutting down.

    Args:
        message: why.
        retry_after_s: whole seconds after which trying again makes sense; None where it would be refused again, until
            somebody looks after the server.
    """

    status = 503
    code = "busy"

    def __init__(self, message: str, retry_after_s: int | None) -> None:
        hint = "the server's log says more" if retry_after_s is None else f"try again in {retry_after_s} s"
        super().__init__(message, hint)
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


class DeviceLost(ZTurboError):
    """The device failed and answers nothing more in this process: a server starts another one."""

    status = 503
    code = "device_lost"
    retry_after_s = 30


class SafetyError(ZTurboError):
    """The safety checker cannot be loaded, or failed on a picture or prompt: nothing was delivered or charged."""

    code = "safety_checker_failed"


class StorageError(ZTurboError):
    """Records or files cannot be read or written just now: disk full, read-only, locked, damaged. The message says."""

    status = 503
    code = "storage_unavailable"
    retry_after_s = 5  # a disk that somebody makes room on works again at once


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
