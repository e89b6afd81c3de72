"""Every reason for which a step of secure aggregation is refused: which rule, and what to do.

The sentences are fixed, so that no refusal can carry a value that depends on data or on a secret.
"""

from __future__ import annotations

from enum import StrEnum

from common.errors import SecAggError


class Reason(StrEnum):
    """Why a step was refused; a name is what tests, logs and error replies go by."""

    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    UNKNOWN_SITE = "unknown-site"
    WRONG_FINGERPRINT = "wrong-fingerprint"
    SHARED_KEY = "shared-key"
    STALE_KEY = "stale-key"
    BAD_KEY = "bad-key"
    WRONG_RUN = "wrong-run"
    FINISHED_RUN = "finished-run"
    OTHER_VERSION = "other-version"
    OLD_SLOT = "old-slot"
    SLOT_USED = "slot-used"
    NOT_DEALT = "not-dealt"
    NOT_HOLDER = "not-holder"
    HOLDERS_DIFFER = "holders-differ"
    SHARES_MISSING = "shares-missing"
    BAD_SHARE = "bad-share"
    BAD_COHORT = "bad-cohort"
    OTHER_PAYLOAD = "other-payload"
    TOO_MANY_SITES = "too-many-sites"
    BAD_THRESHOLD = "bad-threshold"
    SPLIT_VIEWS = "split-views"
    TOO_FEW_HONEST = "too-few-honest"
    SPARSE_GRAPH = "sparse-graph"
    LOW_THRESHOLD = "low-threshold"
    BAD_LISTS = "bad-lists"
    TOO_FEW_SURVIVORS = "too-few-survivors"
    SLOT_CLOSED = "slot-closed"
    ANSWERED_OTHERWISE = "answered-otherwise"
    SAME_WEIGHTS = "same-weights"
    WAITS_FOR_ALLOW = "waits-for-allow"
    NOT_NAMED = "not-named"
    BAD_LAYOUT = "bad-layout"
    OTHER_LAYOUT = "other-layout"
    OVERFLOW = "overflow"
    BAD_CONTRIBUTION = "bad-contribution"
    WRONG_LENGTH = "wrong-length"
    TOO_FEW_ANSWERS = "too-few-answers"
    UNRECOVERABLE = "unrecoverable"
    IMPOSSIBLE_SUM = "impossible-sum"
    NOT_A_REHEARSAL = "not-a-rehearsal"
    BAD_REHEARSAL = "bad-rehearsal"


WORDS = {
    Reason.MALFORMED: (
        "the message is not in the canonical encoding; run the same version of Zamenis on both sides."
    ),
    Reason.UNTRUSTED: (
        "the signature is not by the key pinned for this site; compare its fingerprint outside the "
        "coordinator's channel."
    ),
    Reason.UNKNOWN_SITE: "the site is not on the pinned roster; admit it, then compare its fingerprint.",
    Reason.WRONG_FINGERPRINT: (
        "the fingerprint is not of the key that the coordinator names for it; have it read out again, and if "
        "it stays another, confirm nothing: somebody may stand in between."
    ),
    Reason.SHARED_KEY: (
        "its key is confirmed under another name already; confirm neither until both operators are asked."
    ),
    Reason.STALE_KEY: (
        "the encryption key is not the newest one that this site was shown; use the newest advertisement."
    ),
    Reason.BAD_KEY: "a key of this site is not a usable X25519 key; leave the site out of the next slot.",
    Reason.WRONG_RUN: (
        "the message belongs to another run or another site; send each site its own run's messages."
    ),
    Reason.FINISHED_RUN: "the run is finished and its id is never used again; start a run with a new id.",
    Reason.OTHER_VERSION: (
        "what this site keeps of the run was written by another version of Zamenis, or is damaged; start a "
        "new run."
    ),
    Reason.OLD_SLOT: "the slot is not above every earlier one; take a new slot.",
    Reason.SLOT_USED: "the slot was used with other content; take a new slot.",
    Reason.NOT_DEALT: "this site has not dealt for this slot; ask it to deal first.",
    Reason.NOT_HOLDER: "this site, with its present key, is not among the holders; name it or ask others.",
    Reason.HOLDERS_DIFFER: (
        "the manifest was made for other holders, keys, threshold or graph; compare the roster if it recurs, "
        "and deal again for a new slot."
    ),
    Reason.SHARES_MISSING: (
        "the shares do not come from, or go to, exactly the sites they must; send one for each."
    ),
    Reason.BAD_SHARE: (
        "the sealed share cannot be opened for this site, slot and manifest; leave its dealer out of the"
        " next slot."
    ),
    Reason.BAD_COHORT: (
        "the cohort must be holders in ascending order, each once, this site among them, and at least the "
        "threshold; take a new slot with such a cohort."
    ),
    Reason.OTHER_PAYLOAD: (
        "the weights or the configuration are not those of the plan; send every site what the plan names."
    ),
    Reason.TOO_MANY_SITES: "a slot has 2 to 255 holders; form smaller groups.",
    Reason.BAD_THRESHOLD: (
        "the threshold must be above the holders that may be inventions, and at most all of them; choose"
        " another, or confirm peers."
    ),
    Reason.SPLIT_VIEWS: (
        "2 t > n + n_c does not hold, so two views could collect both secrets of a site; raise the "
        "threshold or confirm peers."
    ),
    Reason.TOO_FEW_HONEST: (
        "a sum could cover fewer honest sites than this site's policy asks; raise the threshold, confirm"
        " peers or wait for more sites."
    ),
    Reason.SPARSE_GRAPH: (
        "the mask graph could be cut by dropouts and colluders; raise its degree or the threshold."
    ),
    Reason.LOW_THRESHOLD: (
        "the threshold is below the default for so many holders; raise it, or allow low-threshold in this "
        "site's policy."
    ),
    Reason.BAD_LISTS: (
        "survivors and dropped must be disjoint, cover the cohort exactly, and name this site a survivor; "
        "send such lists or abandon the slot."
    ),
    Reason.TOO_FEW_SURVIVORS: "fewer survivors than the threshold; abandon the slot and take a new one.",
    Reason.SLOT_CLOSED: (
        "the slot is not open here: never masked, or already closed; abandon it and take a new one."
    ),
    Reason.ANSWERED_OTHERWISE: (
        "another unmask request was answered for this slot; send that one again or abandon the slot."
    ),
    Reason.SAME_WEIGHTS: (
        "these weights were answered over other hospitals, and the two sums' difference would be an update "
        "of a few; ask the same hospitals again, or begin from other weights: another seed."
    ),
    Reason.WAITS_FOR_ALLOW: (
        "the hospitals are nearly those of an earlier sum, and the difference would tell of a few; it waits "
        "for this hospital's operator: zamenis-hospital allow."
    ),
    Reason.NOT_NAMED: (
        "a hospital, or its key, is not as it was named when the run began; begin another run."
    ),
    Reason.BAD_LAYOUT: (
        "a bound of the vector's layout is out of range; check the secure-aggregation settings."
    ),
    Reason.OTHER_LAYOUT: (
        "the vector's bounds are not those that the message asks for; the coordinator may be lying."
    ),
    Reason.OVERFLOW: (
        "the largest possible sum needs more than 32 bits; use fewer bits, smaller weights or fewer sites."
    ),
    Reason.BAD_CONTRIBUTION: (
        "the contribution does not fit the layout, or is not finite; check length, weight, metrics and "
        "training."
    ),
    Reason.WRONG_LENGTH: "the masked vector has the wrong length; count this site as dropped.",
    Reason.TOO_FEW_ANSWERS: "fewer answers than the threshold; wait for more or abandon the slot.",
    Reason.UNRECOVERABLE: (
        "no set of the answered shares gives this site's secret; abandon the slot and leave out whoever "
        "dealt or answered wrongly."
    ),
    Reason.IMPOSSIBLE_SUM: (
        "the sum is outside what honest sites can reach; abandon the slot, and look for the site at fault."
    ),
    Reason.NOT_A_REHEARSAL: "secrets are given away in a rehearsal's own run only; rehearse in one.",
    Reason.BAD_REHEARSAL: (
        "its masked public vector is not the one that everybody can compute; leave it out until its node is"
        " mended."
    ),
}


def refusal(reason: Reason, site: str = "") -> SecAggError:
    """Return the error for `reason`, with the name of the site at fault where there is one."""
    return SecAggError(reason, WORDS[reason], site)
