"""Many visitors of the web page at once: answers, refusals, waiting, and the server's memory.

    python benchmarks/web.py                                  # 50 visitors, on the demo's results
    python benchmarks/web.py --visitors 150 --rounds 1        # more than may wait

Starts `tedm demo`. Each visitor uploads an image of 8 × 8 pixels and has it segmented by the models that
are chosen when the page opens; all do so at the same moment, some rounds long. Prints a Markdown table.
"""

import argparse
import io
import json
import re
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

TEDM = str(Path(sys.executable).with_name("tedm"))
PATIENCE = 300  # seconds


def main() -> None:
    """Start the page, let visitors in, and print what they and the server saw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    command = [TEDM, "demo", "--config", chosen.config, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = iter(server.stdout)
            address = next(found[0] for line in said if (found := re.search(r"http://\S+", line)))
            threading.Thread(target=lambda: [print(line, end="") for line in said], daemon=True).start()
            about = httpx.get(f"{address}/config", timeout=PATIENCE).json()
            visit(address, about, secrets.token_hex(8))
            process = psutil.Process(server.pid)
            print("| round | answers | come again | lost | median wait | longest wait | memory after |")
            print("|--:|--:|--:|--:|--:|--:|--:|")
            print(f"| before | | | | | | {process.memory_info().rss / 2**20:.0f} MB |")
            for number in range(1, chosen.rounds + 1):
                keys = [secrets.token_hex(8) for _ in range(chosen.visitors)]
                with ThreadPoolExecutor(chosen.visitors) as pool:
                    ends = list(pool.map(lambda key: visit(address, about, key), keys))
                waits = [seconds for end, seconds in ends if end == "answer"]
                counts = [sum(end == kind for end, _ in ends) for kind in ("answer", "again", "lost")]
                print(
                    f"| {number} | {' | '.join(map(str, counts))} | {statistics.median(waits):.1f} s"
                    f" | {max(waits):.1f} s | {process.memory_info().rss / 2**20:.0f} MB |"
                )
        finally:
            server.send_signal(signal.SIGTERM)


def visit(address: str, about: dict[str, Any], session: str) -> tuple[str, float]:
    """Upload an image and wait for its result: how it ended, and after how many seconds."""
    began = time.perf_counter()
    pixels = np.random.default_rng(list(session.encode())).integers(0, 255, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        sent = client.post("/gradio_api/upload", files={"files": (f"{session}.png", file.getvalue())})
        if sent.status_code != 200:
            return ("again" if sent.status_code == 503 else "lost"), time.perf_counter() - began
        given = {"meta": {"_type": "gradio.FileData"}, "path": sent.json()[0], "orig_name": "image.png"}
        steps = [("receive", [given, None]), ("segment", [None, *choices(about)])]
        for name, data in steps:
            end = ask(client, about, session, name, data)
            if end != "answer":
                return end, time.perf_counter() - began
    return "answer", time.perf_counter() - began


def choices(about: dict[str, Any]) -> list[Any]:
    """What is ticked when the page opens: methods, training sizes."""
    return [part["props"]["value"] for part in about["components"] if part["type"] == "checkboxgroup"]


def ask(client: httpx.Client, about: dict[str, Any], session: str, name: str, data: list[Any]) -> str:
    """Call one of the page's functions, as its script does."""
    index = next(part["id"] for part in about["dependencies"] if part["api_name"] == name)
    body = {"data": data, "fn_index": index, "session_hash": session, "event_data": None}
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return "again" if joined.status_code == 503 and "full" in joined.text else "lost"
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return "answer" if message["success"] else "lost"
    return "lost"


if __name__ == "__main__":
    main()
