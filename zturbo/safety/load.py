"""The checker, the policy and the guard that the settings ask for, loaded and tried once."""

from typing import TYPE_CHECKING

from zturbo.config import Config
from zturbo.safety.checker import Checker, Safety, judge

if TYPE_CHECKING:
    from zturbo.engine.progress import Pixels
    from zturbo.safety.prompts import PromptGuard

BUNDLED, NONE = "bundled", "none"


def load_safety(config: Config) -> Safety:
    """What is checked, as the settings ask.

    Raises:
        SafetyError: the checker cannot be loaded, or fails on a grey picture.
    """
    return Safety(load_checker(config), config.safety_policy == "always", _guard(config))


def load_checker(config: Config) -> Checker | None:
    """The checker of pictures, run once so that it is warm and known to work; None where the setting says none.

    Raises:
        SafetyError: it cannot be loaded, or fails.
    """
    if config.safety_checker == NONE:
        return None
    checker = _checker(config)
    judge(checker, _grey())
    return checker


def _checker(config: Config) -> Checker:
    if config.safety_checker == BUNDLED:
        from zturbo.safety.open_nsfw import OpenNsfw

        return OpenNsfw(config.safety_threshold)
    from zturbo.safety.classifier import ImageClassifier

    labels = frozenset(label.strip().lower() for label in config.safety_labels.split(",") if label.strip())
    return ImageClassifier(config.safety_checker, config.safety_threshold, labels)


def _guard(config: Config) -> "PromptGuard | None":
    if not config.prompt_guard_url:
        return None
    from zturbo.safety.prompts import GuardEndpoint

    return GuardEndpoint(
        config.prompt_guard_url,
        config.prompt_guard_key,
        config.prompt_guard_model,
        config.prompt_guard_refuses.capitalize(),
        config.prompt_guard_timeout_s,
    )


def _grey() -> "Pixels":
    import numpy as np

    return np.full((64, 64, 3), 128, np.uint8)
