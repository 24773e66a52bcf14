"""What a container left, as the result of the tool call it ran for. Pure.

A model reads text, so stdout is a text of its own and whatever else there is to say another one; programs find the same
in `_meta`. Empty texts are left out: some model APIs refuse them.
"""

import base64
import codecs
from typing import Any

META_RUN = "sandgate/run"

_IMAGE_TYPES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def result_of_run(outcome: dict[str, Any]) -> dict[str, Any]:
    """Of the `outcome` of a run: docs/ARCHITECTURE.md, 6.4."""
    stdout, stderr = base64.b64decode(outcome["stdout"]), base64.b64decode(outcome["stderr"])
    exit_code, note, cut = outcome["exitCode"], outcome["note"], outcome["cut"]
    remarks = ["it did not come to run" if exit_code is None else f"exit code {exit_code}"]
    content: list[dict[str, Any]] = []
    block = _content_of(stdout, outcome["stdout"], is_cut="stdout" in cut)
    if block.get("text") != "":
        content.append(block)
    if content and content[0]["type"] == "resource":
        remarks.append(f"stdout is no UTF-8 text, its {len(stdout)} bytes are attached")
    if not stdout and not stderr:
        remarks.append("it wrote nothing")
    if note is not None:
        remarks.append(note)
    for stream, data in (("stdout", stdout), ("stderr", stderr)):
        if stream in cut:
            remarks.append(f"{stream} was longer than the first {len(data)} bytes given")
    errors = stderr.decode(errors="replace")
    if exit_code != 0 or errors or not content or len(remarks) > 1:
        told = f"[{'; '.join(remarks)}]" + (f"\nstderr:\n{errors}" if errors else "")
        content.append({"type": "text", "text": told})
    meta = {"exitCode": exit_code, "stderr": errors, "note": note, "cut": cut}
    return {"content": content, "isError": exit_code != 0, "_meta": {META_RUN: meta}}


def refusal(message: str) -> dict[str, Any]:
    """The result of a call that was not carried out, for a model to read and do better."""
    return {"content": [{"type": "text", "text": message}], "isError": True}


def _content_of(stdout: bytes, encoded: str, *, is_cut: bool) -> dict[str, Any]:
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if stdout.startswith(start)), None)
    if kind is not None and not is_cut:
        return {"type": "image", "data": encoded, "mimeType": kind}
    try:
        # Where it was cut the last character may be half of one.
        return {"type": "text", "text": codecs.getincrementaldecoder("utf-8")().decode(stdout, final=not is_cut)}
    except UnicodeDecodeError:
        resource = {"uri": "sandgate:stdout", "mimeType": "application/octet-stream", "blob": encoded}
        return {"type": "resource", "resource": resource}
