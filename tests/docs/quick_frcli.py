"""The real program, without waiting for its imports: a server that has them done forks for each call.

    python quick_frcli.py SOCKET TEMPLATE        serve until the end of standard input
    python quick_frcli.py SOCKET run|parse ARG...    be ``frcli ARG...``, in this folder, environment and terminal

A call starts in 0.05 s instead of a second, and is otherwise a process of its own. ``parse`` reads the command line and
leaves out what it asks for. Files of the folder that are those of TEMPLATE, where a command is to write, are deleted
before it does: a page may make what others only use.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys

_HEADER = 4  # bytes: the length of what follows, or the exit code
_PARTS = (
    "cli.chat cli.generate cli.convert cli.eval cli.bench cli.models cli.doctor cli.train chat.session chat.editor"
    " decode.engine jobs.run bench.run evaluation.nll assembly sources.llama sources.onnx"
)


def call(address: str, mode: str, arguments: list[str]) -> int:
    """Have the server run the command line with our files and environment, and return its exit code."""
    told = json.dumps([mode, arguments, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(told).to_bytes(_HEADER, "big")], [0, 1, 2])
        connection.sendall(told)
        answer = connection.recv(_HEADER)
    return int.from_bytes(answer, "big") if answer else 70


def serve(address: str) -> tuple[str, list[str]]:
    """Answer calls to the end of standard input; returns what each is to run, in a process in the caller's place."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                sys.exit()
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            while _reaped():
                pass
    header, files, _, _ = socket.recv_fds(connection, _HEADER, 3)
    told = b""
    while len(told) < int.from_bytes(header, "big"):
        told += connection.recv(1 << 16)
    if child := os.fork():
        for file in files:
            os.close(file)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall((status if status >= 0 else 128 - status).to_bytes(_HEADER, "big"))
        os._exit(0)
    connection.close()
    mode, arguments, folder, environ = json.loads(told)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    # As Python opens them for the terminal, pipe or file that they are now.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False, buffering=1 if os.isatty(1) else -1)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    return mode, arguments


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def make_way(arguments: list[str], template: str) -> None:
    """Delete what ``-o`` names where it is a file or folder of the template still."""
    import shutil

    for option, path in zip(arguments, arguments[1:], strict=False):
        ours = os.path.join(template, path)
        if option not in ("-o", "--output") or not os.path.exists(ours) or not os.path.exists(path):
            continue
        if os.path.isdir(path):
            if all(
                os.path.samefile(each, os.path.join(ours, each.name)) for each in os.scandir(path) if each.is_file()
            ):
                shutil.rmtree(path)
        elif os.path.samefile(path, ours):
            os.unlink(path)


def main() -> None:
    """Serve, or call."""
    address, second, *arguments = sys.argv[1:]
    if second in ("run", "parse"):
        sys.exit(call(address, second, arguments))

    import importlib

    for part in _PARTS.split():
        importlib.import_module(f"frcli.{part}")
    from typer.core import TyperCommand

    from frcli.cli import app

    mode, arguments = serve(address)
    if mode == "parse":
        TyperCommand.invoke = lambda self, context: None
    else:
        make_way(arguments, second)
    sys.argv = ["frcli", *arguments]
    app.main()


if __name__ == "__main__":
    main()
