"""A peer: the parent's end of one rank, and what is observed of it, by its answer or by its remains."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from properties.case import Case
from properties.observation import Ending, RankObservation
from verify.ranks import shared_tensors
from verify.ranks.endings import exit_text
from verify.ranks.messages import Failed, Frames, FromRank, Look, RankAnswer, Seen, Skipped, frame
from verify.ranks.post_mortem import PostMortem

_PIECE = 1 << 16


class RankHandle:
    """The connection and the memory file of rank `number` of the group in `folder`.

    Attributes:
        watch: The connection to its watch (`verify.ranks.worker.watch`).
        theirs: The rank's ends of the two connections, until they have been handed over.
        answers: What it has answered and was not yet looked at, in order.
        gone: Its connection is closed.
        seen: What the last look has shown, or None.
        unseen: The last look has shown nothing: the next one will hardly, either.
        forgotten: Numbers of cases sent ahead whose answers are of no interest any more.
        remains: What it leaves in the folder.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.connection, theirs = socket.socketpair()
        self.watch, watched = socket.socketpair()
        self.watch.settimeout(0.0)
        self.theirs = (theirs, watched)
        self.memory = shared_tensors.create()
        self.answers: list[FromRank] = []
        self.gone = False
        self.seen: Seen | None = None
        self.unseen = False
        self.forgotten: set[int] = set()
        self.remains = PostMortem(folder, number)
        self._frames = Frames()
        self._decoder = msgspec.json.Decoder(FromRank)
        self._looks = Frames()

    @property
    def silent(self) -> bool:
        """Whether it has not answered, and still may."""
        return not self.answers and not self.gone

    @property
    def failed(self) -> bool:
        """Whether others may wait for it in vain."""
        answer = self.answers[0] if self.answers else None
        return isinstance(answer, Failed) or (
            answer.observed.ending == "raised" if isinstance(answer, RankAnswer) else self.gone
        )

    def receive(self) -> None:
        """Take what has arrived; `gone` if that is the end."""
        try:
            data = self.connection.recv(_PIECE)
        except ConnectionResetError:
            data = b""
        if not data:
            self.gone = True
            return
        self._frames.feed(data)
        try:
            while (body := self._frames.next()) is not None:
                self.answers.append(self._decoder.decode(body))
            self._forget()
        except ValueError as error:
            self.answers.append(Failed(message=f"its answer cannot be read: {error}"))

    def look(self, number: int) -> None:
        """Ask its watch where it is; `see` takes the answer."""
        self.seen = None
        with contextlib.suppress(OSError):  # it may be gone, or not read any more
            self.watch.sendall(frame(Look(number=number)))

    def see(self, number: int) -> None:
        """Take what its watch has answered to look `number`; earlier answers came too late."""
        try:
            data = self.watch.recv(_PIECE)
            self._looks.feed(data)
            while (body := self._looks.next()) is not None:
                seen = msgspec.json.decode(body, type=Seen)
                self.seen = seen if seen.number == number else self.seen
        except (OSError, ValueError):  # the subject has closed it, or written to it: there is nothing to see
            return

    def forget(self, numbers: Iterable[int]) -> None:
        """Take no answer that says that the cases of these numbers were passed over."""
        self.forgotten.update(numbers)
        self._forget()

    def _forget(self) -> None:
        if self.forgotten:
            self.answers = [
                answer
                for answer in self.answers
                if not (isinstance(answer, Skipped) and answer.number in self.forgotten)
            ]

    def close(self) -> None:
        """Free connections and memory file."""
        self.connection.close()
        self.watch.close()
        os.close(self.memory)

    def returned(self, answer: RankAnswer, case: Case, *, base: int) -> RankObservation:
        """Return what it has answered for `case`; its tensors lie from `base` on in the memory file."""
        tensors = shared_tensors.read(
            self.memory, answer.tensors, size=answer.size, spill=answer.spill, base=base
        )
        return msgspec.structs.replace(answer.observed, tensors=tensors)

    def died(self, code: int | None) -> RankObservation:
        """Return what is told of it after its process has ended with `code`."""
        printed = self.remains.printed()
        stack = self.remains.stack() + (f"\n\nLast output of the rank:\n{printed}" if printed else "")
        return RankObservation(
            rank=self.number,
            ending="died",
            exit=exit_text(code),
            stack=stack.strip(),
            ledger=self.remains.ledger(),
        )

    def killed(self, ending: Ending) -> RankObservation:
        """Return what is told of it after it was killed: where it was seen, or what was dumped of it."""
        stack = self.remains.trimmed(self.seen.stack) if self.seen else self.remains.stack()
        return RankObservation(rank=self.number, ending=ending, stack=stack, ledger=self.remains.ledger())
