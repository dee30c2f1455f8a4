"""The fields of a plan that say how updates and models become smaller messages; docs/efficient.md has what that saves."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fl_privacy.messages import Message


class CompressionFields(Message):
    """One public linear map a round, the same for every owner, and steps of the model in fewer bits.

    ``update_ranges`` ``adaptive``: each tensor has its own bound, by the last opened mean, ``update_range`` being the first.
    ``rotation``: updates are rotated before they are rounded. ``sent`` says which coordinates travel: ``all``, a ``random``
    part (``sent_share`` of them, drawn anew each round), or the ``shared-top`` (those that were largest in the last opened
    mean, a tenth of them drawn). ``error_feedback``: an owner keeps what it did not send, and adds it to its next update.
    ``downlink_bits`` 8: the model moves in steps of 8 bits for each coordinate, what rounding left coming later.
    """

    update_ranges: Literal["fixed", "adaptive"] = "fixed"
    rotation: bool = False
    sent: Literal["all", "random", "shared-top"] = "all"
    sent_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    error_feedback: bool = False
    downlink_bits: Literal[8, 32] = 32

    @field_validator("sent", mode="before")
    @classmethod
    def _no_own_choice(cls, told: object) -> object:
        if told in ("top", "top-k", "topk"):
            raise ValueError(
                "each owner's own largest coordinates would tell which ones it changed, and do not add up in a sum; use"
                ' "shared-top" or "random"'
            )
        return told

    @model_validator(mode="after")
    def _compression_fits(self) -> Self:
        if self.sent == "all" and (self.sent_share != 1 or self.error_feedback):
            raise ValueError('sent: with "all" nothing is left out, so sent_share is 1 and there is no error_feedback')
        if self.sent != "all" and self.sent_share == 1:
            raise ValueError(f'sent_share: {self.sent!r} needs a share below 1; or use sent = "all"')
        if self.sent == "shared-top" and not self.error_feedback:
            raise ValueError("error_feedback: without it what shared-top does not choose would never be learnt")
        if self.rotation and (self.update_ranges == "adaptive" or self.sent == "shared-top"):
            raise ValueError("rotation: it mixes the coordinates; adaptive ranges and shared-top tell them apart")
        return self

    @property
    def is_compressed(self) -> bool:
        """Whether an order says anything about compression."""
        return self.rotation or self.sent != "all" or self.update_ranges == "adaptive"
