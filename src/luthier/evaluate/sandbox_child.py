"""The process that `sandbox.py` starts: puts fences around itself and runs the program that it is handed.

Run as a script of its own, with nothing but Python's standard library. Landlock (Linux 5.13) forbids to write or remove
files outside the current folder; a seccomp filter makes calls fail that open sockets, start processes, signal others or
change the machine. Neither can be taken off again. Numbers and layouts are those of the kernel's interface
(linux/landlock.h, linux/seccomp.h, linux/filter.h).
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_ALL_WRITES = _WRITE_FILE | sum(
    1 << bit for bit in range(4, 13)
)  # remove and make: files, folders, devices, links

_CALLS = {
    "x86_64": (0xC000003E, 56, {
        # socket connect fork vfork kill tkill tgkill ptrace truncate chmod fchmod chown fchown lchown
        41, 42, 57, 58, 62, 200, 234, 101, 76, 90, 91, 92, 93, 94,
        # fchownat fchmodat mount umount2 reboot unshare setns init_module finit_module delete_module
        260, 268, 165, 166, 169, 272, 308, 175, 313, 176,
        # process_vm_readv process_vm_writev bpf setrlimit prlimit64 settimeofday clock_settime sethostname
        310, 311, 321, 160, 302, 164, 227, 170,
    }),
    "aarch64": (0xC00000B7, 220, {
        198, 203, 129, 130, 131, 117, 45, 52, 55, 54, 53, 40, 39, 142, 97, 268, 105, 273, 106,
        270, 271, 280, 164, 261, 170, 112, 161,
    }),
}  # fmt: skip
"""For each machine: its mark in a filter, its number of clone, and the calls that fail."""
_ON_BOTH = {424, 425, 426, 427, 434, 452}
"""pidfd_send_signal, io_uring (three), pidfd_open, fchmodat2."""
_CLONE3, _THREAD = 435, 0x10000
_NOT_PERMITTED, _NOT_THERE = 0x00050001, 0x00050026
_ALLOWED = 0x7FFF0000


def main() -> None:
    """Reads an order from standard input, obeys it and says how it ended."""
    order = json.loads(sys.stdin.buffer.read())
    token, report = order["token"], os.fdopen(order["to"], "w", encoding="utf-8")

    def say(**how: object) -> None:
        report.write(token + json.dumps(how) + "\n")
        report.flush()

    seconds = max(1, round(order["seconds"]))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a signal that tells why, then the end
    for kind, most in (("AS", order["bytes"]), ("FSIZE", 16 << 20), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
    try:
        _fence()
    except OSError as error:
        say(passed=False, reason="", unfenced=error.strerror)
        return
    try:
        exec(compile(order["program"], "answer", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # whatever it raises is a program that did not pass, SystemExit too
        say(passed=False, reason=f"{type(error).__name__}: {str(error)[:200]}")
        return
    say(passed=True, reason="")


def _fence() -> None:
    """Puts both fences up. Raises OSError that says which one this system does not have."""
    if platform.machine() not in _CALLS:
        raise OSError(0, f"unknown machine {platform.machine()}")
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _keep_files()
    _forbid_calls()


def _keep_files() -> None:
    """Files can be written and removed in the current folder only; /dev/null takes what it is given."""
    version = _checked(_LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    writes = _ALL_WRITES | (_TRUNCATE if version >= 3 else 0)
    rules = ctypes.create_string_buffer(struct.pack("=Q", writes), 8)
    ruleset = _checked(_LIBC.syscall(_LANDLOCK_CREATE, rules, 8, 0), "Landlock")
    for path, rights in ((".", writes), ("/dev/null", _WRITE_FILE)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
        _checked(_LIBC.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), "Landlock")
        os.close(place)
    _checked(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _forbid_calls() -> None:
    """Calls that reach beyond this process fail with EPERM; new threads are allowed, new processes are not."""
    machine, clone, denied = _CALLS[platform.machine()]
    numbers = sorted(denied | _ON_BOTH)
    load, equal, at_least, bits, end = 0x20, 0x15, 0x35, 0x45, 0x06
    # (code, jump if true, jump if false, value); jumps count the instructions that are passed over
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, _NOT_PERMITTED), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (end, 0, 0, _NOT_PERMITTED)]
    program += [(equal, 0, 1, _CLONE3), (end, 0, 0, _NOT_THERE)]  # the C library then calls clone
    program += [(equal, 0, 4, clone), (load, 0, 0, 16), (bits, 0, 1, _THREAD), (end, 0, 0, _ALLOWED)]
    program += [(end, 0, 0, _NOT_PERMITTED)]
    program += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(end, 0, 0, _ALLOWED), (end, 0, 0, _NOT_PERMITTED)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    told = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    _checked(_LIBC.prctl(_SET_SECCOMP, _FILTER, told, 0, 0), "seccomp")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"it has no {what}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
