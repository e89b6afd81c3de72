"""The whole exception tree.

ZamenisError
├── ConfigError       a configuration file or command line that cannot mean anything
│   └── UnfitError    a network that does not read what a hospital has, images or tables
├── DataError         a hospital's folder that cannot be used at all
│   ├── Refused       one file that is left out of a run, with its reason; never stops anything
│   ├── TooSmallError a hospital with too few patients for a run; the others go on without it
│   └── TooFewError   a round that too few hospitals can make; its run stops, and can be resumed
│       └── NothingLearnedError   so, and no round before has changed the model
├── WireError         a message that breaks the contract between coordinator and hospital
│   └── ProtocolError the other side runs another version
├── PolicyError       a message that asks for more than a hospital allows
├── LinkError         the coordinator's own SuperLink does not answer
├── EnrolmentError    a hospital that cannot be admitted to a federation, or cannot join it
│   ├── EnrolmentRefused   the coordinator said no, for one reason from `common.enrolment.Code`
│   └── EnrolmentPending   the coordinator's people have not said yes yet
├── ServiceError      a background process that cannot be started or stopped
├── CheckpointError   a checkpoint that does not belong to this run, or is damaged
└── SecAggError       a step of secure aggregation that was refused, with its reason

Every message names what is wrong (file or field), the rule, and what to do. A command that meets a
`ZamenisError` prints that one message and exits with its code: 2 or, where a run learned nothing, 3.
Messages never hold a value of a DICOM element: they may be shown, logged, or sent.
"""

from __future__ import annotations


class ZamenisError(Exception):
    """Something that a person has to put right; its text says what and how."""

    exit_code = 2
    """What a command ends with."""


class ConfigError(ZamenisError):
    """A configuration that cannot mean anything."""


class UnfitError(ConfigError):
    """A network for images where a hospital has a table, or the other way round."""


class DataError(ZamenisError):
    """A hospital's folder that cannot be used at all."""


class TooSmallError(DataError):
    """A hospital with too few patients for a run, whose others go on without it."""


class Refused(DataError):  # noqa: N818 - a verdict on one file, not a failure of ours
    """One file that is left out, for one `reason` from `client.preflight.REASONS`."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}: {remedy}" if remedy else reason)


class TooFewError(DataError):
    """A round that too few hospitals can make; its run stops, and can be resumed."""


class NothingLearnedError(TooFewError):
    """A run that stops, or is over, and no round has changed the model."""

    exit_code = 3


class WireError(ZamenisError):
    """A message that breaks the contract between coordinator and hospital."""


class ProtocolError(WireError):
    """The other side speaks another protocol: it runs another version."""


class PolicyError(ZamenisError):
    """A message that asks for more than a hospital allows, by the `key` of its policy.toml."""

    WORDS = "this hospital's policy does not allow it"

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"{self.WORDS} ({key} in its policy.toml).")


class LinkError(ZamenisError):
    """The coordinator's own SuperLink does not answer; worth another try once it does."""


class EnrolmentError(ZamenisError):
    """A hospital that cannot be admitted to a federation, or cannot join it."""


class EnrolmentRefused(EnrolmentError):  # noqa: N818 - an answer, not a failure of ours
    """The coordinator said no, for one `code` from `common.enrolment.Code`."""

    def __init__(self, code: str, words: str) -> None:
        self.code = code
        super().__init__(words)


class EnrolmentPending(EnrolmentError):  # noqa: N818 - an answer, not a failure of ours
    """The coordinator has the application, and its people have not said yes yet."""


class ServiceError(ZamenisError):
    """A background process that cannot be started or stopped."""


class CheckpointError(ZamenisError):
    """A checkpoint that does not belong to this run, or is damaged."""


class SecAggError(ZamenisError):
    """A step of secure aggregation that was refused, for one `reason` from `common.secagg.reasons`.

    Its text is the reason's fixed sentence and, where one is at fault, a site's name: never a value that
    depends on data or on a secret, so that it may be shown, logged and sent.
    """

    def __init__(self, reason: str, words: str, site: str = "") -> None:
        self.reason = reason
        self.site = site
        super().__init__(f"{site}: {words}" if site else words)
