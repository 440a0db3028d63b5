"""Ranges of a file for another process, which asks for them over a socket.

Parquet is read by a process that has no credentials, and may end at any moment. This one reads for it: it sees one
version of the object, tries again, and knows why a request failed. A request is two uint64, first byte and length;
the answer is as many bytes. The end of the connection says that there are none.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from megacode.base.errors import MegacodeError
from megacode.data.object_reader import CHUNK_BYTES
from megacode.data.objects import ObjectPath, RemoteObject, remote

_REQUEST = struct.Struct("<QQ")
_HELD = 16  # chunks in memory: columns are read side by side, each of them in order


class RangeServer:
    """Answers the requests of one process.

    Args:
        path: the object.

    Attributes:
        error: why a request could not be answered; None: all could.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.error: MegacodeError | None = None
        self._source: RemoteObject = remote(path)
        self._chunks: OrderedDict[int, Future[memoryview]] = OrderedDict()

    @contextmanager
    def serving(self) -> Iterator[socket.socket]:
        """Yield the other process's end of the connection, and answer until the block ends."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(ours,), daemon=True)
        thread.start()
        try:
            with theirs:
                yield theirs
        finally:
            # Wakes the thread, whatever it waits for.
            _end(ours)
            thread.join()
            ours.close()
            for future in self._chunks.values():
                future.cancel()

    def _serve(self, ours: socket.socket) -> None:
        try:
            while len(asked := ours.recv(_REQUEST.size, socket.MSG_WAITALL)) == _REQUEST.size:
                first, count = _REQUEST.unpack(asked)
                while count:
                    piece = self._piece(first, first + count)
                    ours.sendall(piece)
                    first, count = first + len(piece), count - len(piece)
        except MegacodeError as error:
            self.error = error
            _end(ours)
        except OSError:
            return  # the other process has ended

    def _piece(self, first: int, end: int) -> memoryview:
        """Return some bytes from `first` on, and begin to fetch those behind them."""
        number, size = first // CHUNK_BYTES, self._source.size
        for n in range(number, min(number + 2, -(-size // CHUNK_BYTES))):
            if n not in self._chunks:
                begin = n * CHUNK_BYTES
                self._chunks[n] = self._source.direct_soon(begin, min(size, begin + CHUNK_BYTES))
        self._chunks.move_to_end(number)
        while len(self._chunks) > _HELD:
            self._chunks.popitem(last=False)[1].cancel()
        return self._chunks[number].result()[first - number * CHUNK_BYTES : end - number * CHUNK_BYTES]


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side may have ended it
        connection.shutdown(socket.SHUT_RDWR)
