"""Every error that fl_privacy raises on purpose.

FlPrivacyError
 ├─ PlanError               a plan field is missing, out of range, or in conflict with another
 ├─ CorpusError             a corpus file or row cannot be used
 ├─ ModelError              a model, vocabulary or tensor list cannot be used
 ├─ CompressionError        an update cannot be compressed as asked, or a model step does not fit its model
 ├─ PrivacyError            the privacy asked for cannot be given
 ├─ MessageError            a message between parties is malformed
 │   ├─ SignatureInvalid    ... or not signed by whom it should be
 │   ├─ DigestMismatch      ... or its bytes are not the ones that were announced
 │   └─ TooLarge            ... or larger than its reader takes
 ├─ AdmissionError          an owner's guard refuses an order
 │   ├─ NotApproved         plan, code, corpus, key, installed package or date are not what the owner approved
 │   ├─ RequestDenied       the owner said no, or revoked its approval; carries the reason
 │   ├─ OrderRefused        out of schedule, replayed, or in conflict with an earlier order
 │   │   ├─ BlobMissing     ... or names bytes that this guard does not have, or not from this key
 │   │   ├─ PolicyRefused   ... or outside what the owner's domain.toml allows; names the line
 │   │   └─ ControlMismatch ... or names a control variate that this owner does not have; says how to start anew
 │   ├─ DatasitePaused      the owner has paused the whole datasite; carries the reason
 │   ├─ CohortTooSmall      fewer owners than can hide one update in a sum
 │   └─ OrderFailed         the order was admitted and paid, then failed; a new attempt is needed
 ├─ LedgerError             the privacy ledger cannot be used
 │   ├─ BudgetExceeded      the spend would pass the owner's budget
 │   └─ LedgerTampered      an entry was edited, dropped, reordered or signed by another key
 ├─ EncryptionError         the secure sum cannot be formed or opened
 │   ├─ EncodingOverflow    the cohort does not fit the plaintext modulus
 │   ├─ CiphertextInvalid   truncated, tampered, or made for another order
 │   ├─ CohortMismatch      the signed updates are not exactly the cohort of the order
 │   ├─ AlreadyOpened       a second, different sum for the same order
 │   ├─ ChecksumMismatch    the opened sum is not the sum of the whole cohort
 │   └─ KeyMissing          a key that this step needs was never set up
 ├─ HomeError               an owner's or scientist's folder is missing, locked or open to others
 │   └─ CheckpointError     ... or a run cannot go on from what lies in it
 ├─ ExportError             a model cannot be exported as it should be, or an export cannot be used
 ├─ InputRefused            a text that a served model has no answer for; says why, never the text
 ├─ ExtraMissing            an optional package is not installed; names the extra to install
 ├─ ConnectionFailed        a guard or datasite does not answer
 ├─ CredentialsRefused      wrong e-mail, password or account
 ├─ TooManyRequests         more requests, or wrong log-ins, than a server answers; says when to try again
 ├─ OwnerFailed             one owner could not finish its part; names the owner and why
 └─ RoundFailed             a round ended without an opened sum; lists the owners' failures

Errors cross process boundaries as ``{"error": class name, "message": text}``. A message states what was wrong, where, and
what to do; it never holds a secret, a corpus row, or a value computed from private data without noise.
"""

from __future__ import annotations


class FlPrivacyError(Exception):
    """Base of all errors that this package raises on purpose."""


class PlanError(FlPrivacyError):
    """A plan field is missing, out of range, or in conflict with another; the message names the field."""


class CorpusError(FlPrivacyError):
    """A corpus file or row cannot be used; the message names file and line, never the text."""


class ModelError(FlPrivacyError):
    """A model, vocabulary or tensor list cannot be used."""


class CompressionError(FlPrivacyError):
    """An update cannot be compressed or restored as asked, or a model step is malformed or does not fit its model."""


class PrivacyError(FlPrivacyError):
    """The privacy asked for cannot be given; nothing was trained or released."""


class MessageError(FlPrivacyError):
    """A message between parties is malformed."""


class SignatureInvalid(MessageError):
    """A message is not signed by the party that should have signed it."""


class DigestMismatch(MessageError):
    """The bytes that arrived are not the ones that were announced."""


class TooLarge(MessageError):
    """A request, or all uploads of one key together, are larger than its reader takes."""


class AdmissionError(FlPrivacyError):
    """An owner's guard refuses an order."""


class NotApproved(AdmissionError):
    """Plan, code, corpus, scientist's key or installed package differ from what the owner approved, or it has expired."""


class RequestDenied(AdmissionError):
    """The owner denied the request or revoked its approval; the message carries the reason."""


class OrderRefused(AdmissionError):
    """The order is out of schedule, replayed, or in conflict with an earlier one."""


class BlobMissing(OrderRefused):
    """A request names bytes that were not uploaded, not with this key, or are gone again; once they are sent, it may pass."""


class PolicyRefused(OrderRefused):
    """Outside what the owner's ``domain.toml`` allows, whatever was approved; the message names the line."""


class ControlMismatch(OrderRefused):
    """A SCAFFOLD order and this owner disagree on which control variate of its own comes next, or it was lost.

    The owner never trains from another one in its place. The scientist starts all variates anew, at zero.
    """


class DatasitePaused(AdmissionError):
    """The owner has paused the whole datasite; the message carries the reason."""


class CohortTooSmall(AdmissionError):
    """Fewer owners than can hide one update in a sum."""


class OrderFailed(AdmissionError):
    """The order was admitted and paid for, then failed; only a new attempt can train again."""


class LedgerError(FlPrivacyError):
    """The privacy ledger cannot be used."""


class BudgetExceeded(LedgerError):
    """The spend would pass the owner's budget; nothing was trained."""


class LedgerTampered(LedgerError):
    """An entry was edited, dropped, reordered, or signed by another key; ``entry`` is its number where one is at fault."""

    def __init__(self, message: str, entry: int | None = None) -> None:
        super().__init__(message)
        self.entry = entry


class EncryptionError(FlPrivacyError):
    """The secure sum cannot be formed or opened."""


class EncodingOverflow(EncryptionError):
    """The cohort or the precision asked for does not fit the plaintext modulus."""


class CiphertextInvalid(EncryptionError):
    """A ciphertext is truncated, tampered with, or was made for another order."""


class CohortMismatch(EncryptionError):
    """The signed updates are not exactly the cohort of the order."""


class AlreadyOpened(EncryptionError):
    """A second, different sum was presented for an order that was opened before."""


class ChecksumMismatch(EncryptionError):
    """The opened value is not the sum of the whole cohort."""


class KeyMissing(EncryptionError):
    """A key that this step needs was never set up."""


class HomeError(FlPrivacyError):
    """A state folder is missing, in use by another process, or open to other users."""


class CheckpointError(HomeError):
    """A run's folder holds no run, another one, one that is not finished, or files that do not fit together."""


class ExportError(FlPrivacyError):
    """A model cannot be exported, an exported one gives other scores than it should, or an export is damaged or incomplete."""


class InputRefused(FlPrivacyError):
    """A text that a served model has no answer for, such as one without a mask; the message says why, never the text."""


class ExtraMissing(FlPrivacyError):
    """What was asked for needs an optional package; the message names the extra to install."""


class ConnectionFailed(FlPrivacyError):
    """A guard, a datasite or a tracking server does not answer."""


class CredentialsRefused(FlPrivacyError):
    """Wrong e-mail, password or account."""


class TooManyRequests(FlPrivacyError):
    """More requests, or wrong log-ins, than a datasite or a served model answers; ``wait`` is in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class OwnerFailed(FlPrivacyError):
    """One owner could not finish its part of a round."""

    def __init__(self, owner: str, reason: str) -> None:
        super().__init__(f"{owner}: {reason}")
        self.owner = owner
        self.reason = reason


class RoundFailed(FlPrivacyError):
    """A round ended without an opened sum; ``failures`` maps owner to reason."""

    def __init__(self, round_index: int, failures: dict[str, str]) -> None:
        told = "; ".join(f"{owner}: {reason}" for owner, reason in sorted(failures.items()))
        super().__init__(f"round {round_index} was not opened ({told})")
        self.round_index = round_index
        self.failures = failures


def _tree(root: type[FlPrivacyError]) -> dict[str, type[FlPrivacyError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def to_wire(error: FlPrivacyError) -> dict[str, str]:
    """The form in which an error crosses a process boundary."""
    return {"error": type(error).__name__, "message": str(error)}


def from_wire(wire: dict[str, str]) -> FlPrivacyError:
    """Rebuild an error that another process sent; an unknown class becomes the base class, never a success."""
    name, message = str(wire.get("error", "")), str(wire.get("message", ""))
    kind = _tree(FlPrivacyError).get(name, FlPrivacyError)
    if kind in (OwnerFailed, RoundFailed, FlPrivacyError):
        return FlPrivacyError(f"{name}: {message}" if name else message)
    return kind(message)
