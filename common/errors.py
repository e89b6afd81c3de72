"""The whole exception tree.

ZamenisError
├── ConfigError       a configuration file or command line that cannot mean anything
├── DataError         a hospital's folder that cannot be used at all
│   └── Refused       one file that is left out of a run, with its reason; never stops anything
├── WireError         a message that breaks the contract between coordinator and hospital
├── CheckpointError   a checkpoint that does not belong to this run, or is damaged
└── SecAggError       a step of secure aggregation that was refused, with its reason

Every message names what is wrong (file or field), the rule, and what to do. A command that meets a
`ZamenisError` prints that one message and exits with code 2. Messages never hold a value of a DICOM
element: they may be shown, logged, or sent.
"""

from __future__ import annotations


class ZamenisError(Exception):
    """Something that a person has to put right; its text says what and how."""


class ConfigError(ZamenisError):
    """A configuration that cannot mean anything."""


class DataError(ZamenisError):
    """A hospital's folder that cannot be used at all."""


class Refused(DataError):  # noqa: N818 - a verdict on one file, not a failure of ours
    """One file that is left out, for one `reason` from `client.preflight.REASONS`."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}: {remedy}" if remedy else reason)


class WireError(ZamenisError):
    """A message that breaks the contract between coordinator and hospital."""


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
