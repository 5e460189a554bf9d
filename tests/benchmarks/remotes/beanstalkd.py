"""beanstalkd, by its protocol of lines."""

from __future__ import annotations

import socket

BODY = b'{"answer": 42}'


class Client:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def call(self, command: bytes, said: bytes) -> list[bytes]:
        """Return the words of the answer, which begins with what is expected."""
        self._socket.sendall(command + b"\r\n")
        words = self._answers.readline().split()
        assert words[0] == said, words
        return words

    def turn(self, held: list[bytes], wanted: int) -> list[bytes]:
        for number in held:
            self.call(b"delete " + number, b"DELETED")
        if not wanted:
            return []
        _, number, length = self.call(b"reserve", b"RESERVED")
        self._answers.read(int(length) + 2)
        return [number]


def fill(port: int, jobs: int) -> None:
    client = Client(port)
    for _ in range(jobs):
        client.call(b"put 0 0 600 %d\r\n%b" % (len(BODY), BODY), b"INSERTED")


def connect(port: int, name: str) -> Client:
    return Client(port)
