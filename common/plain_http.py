"""An HTTP client's answers as they come over the line: uncompressed, of bounded length, from nowhere else.

A limit that counts after a body was inflated is none: a quarter of a MiB of gzip is 256 MiB of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx

from common.errors import WireError

LONGEST_BODY = 2**25
"""Bytes of any one body, either way; Flower sends arrays in pieces of 5 MiB."""


def keep_plain(client: httpx.Client, longest: Callable[[str], int] = lambda path: LONGEST_BODY) -> None:
    """Let `client` ask for plain bodies, follow no redirect and keep no cookie.

    `longest` gives the bytes that an answer at a path may have. An answer that is compressed or longer raises
    WireError before more of it is read.
    """

    def ask(request: httpx.Request) -> None:
        request.headers["Accept-Encoding"] = "identity"

    def check(response: httpx.Response) -> None:
        client.cookies.clear()
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() != "identity":
            raise WireError("an answer came compressed; only plain ones are read. Except it from any proxy.")
        assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - a Client's are
        response.stream = _Bounded(response.stream, longest(response.request.url.path))

    client.follow_redirects = False
    client.event_hooks = {"request": [ask], "response": [check]}


class _Bounded(httpx.SyncByteStream):
    """A body that ends in WireError once it is longer than `limit` bytes."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for piece in self._stream:
            received += len(piece)
            if received > self._limit:
                raise WireError(f"an answer is longer than the {self._limit} bytes that are allowed.")
            yield piece

    def close(self) -> None:
        self._stream.close()
