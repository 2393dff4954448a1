#!/usr/bin/env python3
"""Does the model in this folder answer here as it did where it was written, and how fast is it?

Starts llama.cpp's server with the GGUF of this folder, asks what is in self_test.json, and compares the answers.
Needs Python 3.9 and llama-server; nothing else.

    python3 self_test.py [--server PATH] [--threads N] [--port N]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))


def ask(port, path, body=None, timeout=600):
    """The server's answer as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def wait_until_ready(port, server, seconds=300):
    """Whether the server answers before so many seconds are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            ask(port, "/health", timeout=5)
            return True
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(0.3)
    return False


def same_start(one, other):
    """How much of `other` is the same from its start, from 0 to 1."""
    count = 0
    for left, right in zip(one, other):  # noqa: B905  # Python 3.9 has no `strict`
        if left != right:
            break
        count += 1
    return count / max(1, len(other))


def measure(port, test):
    """Shares of the same text for prompts as text and for chats, and the speed of each answer."""
    texts, chats, speeds = [], [], []
    settings = {"temperature": 0, "top_k": 1, "seed": 0, "cache_prompt": False}
    for case in test["cases"]:
        found = ask(port, "/completion", dict(settings, prompt=case["prompt"], n_predict=test["tokens"]))
        texts.append(same_start(found.get("content", ""), case["answer"]))
        speed = found.get("timings", {}).get("predicted_per_second")
        if speed:
            speeds.append(speed)
        asked = dict(settings, messages=case["messages"], max_tokens=test["tokens"])
        message = ask(port, "/v1/chat/completions", asked)["choices"][0]["message"]
        said = (message.get("reasoning_content") or "") + (message.get("content") or "")
        chats.append(same_start(said.strip(), case["answer"].strip()))
        asked_for = case["messages"][-1]["content"][:40]
        print(f"  {texts[-1]:4.0%} of the text, {chats[-1]:4.0%} of the chat are the same: {asked_for!r}")
    return texts, chats, speeds


def verdict(test, texts, chats, speeds):
    """Prints what was found; whether it is good."""
    mean_text, mean_chat = (sum(shares) / max(1, len(shares)) for shares in (texts, chats))
    good = mean_text >= test["least"] and mean_chat >= test["least"]
    if speeds:
        speed = sorted(speeds)[len(speeds) // 2]
        predicted = test["predicted_tokens_per_second"]
        print(f"{speed:.1f} tokens a second; predicted for a Raspberry Pi 5: {predicted:.1f}")
    shares = f"{mean_text:.0%} of the texts, {mean_chat:.0%} of the chats"
    print(f"same from the start, on average: {shares} (at least {test['least']:.0%} are expected)")
    if mean_text < test["least"]:
        print("The weights or the tokenizer do not do what they did where the file was written.")
    elif mean_chat < test["least"]:
        print("The weights are right, but the server asks in other words: is the chat template another?")
    print("PASSED" if good else "FAILED")
    return good


def main():
    """Exit status 0: passed; 1: other answers; 2: it could not run."""
    with open(os.path.join(HERE, "self_test.json"), encoding="utf-8") as file:
        test = json.load(file)
    parser = argparse.ArgumentParser(
        description="Compares answers here with those where the model was written."
    )
    parser.add_argument("--server", default=shutil.which("llama-server"), help="llama.cpp's llama-server")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 4)
    parser.add_argument("--port", type=int, default=18733)
    given = parser.parse_args()
    if not given.server:
        print("llama-server is not on the PATH; build llama.cpp, or give --server PATH.")
        return 2
    command = [
        given.server,
        "-m",
        os.path.join(HERE, test["file"]),
        "--port",
        str(given.port),
        "--host",
        "127.0.0.1",
    ]
    command += ["-t", str(given.threads), "-c", "2048", "--jinja"]
    with open(os.path.join(HERE, "self_test.log"), "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        if not wait_until_ready(given.port, server):
            print("llama-server did not start; self_test.log says why.")
            return 2
        return 0 if verdict(test, *measure(given.port, test)) else 1
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
