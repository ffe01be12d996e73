"""The published log by HTTP, as tlog-tiles lays it out: files as they are, and nothing else."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from aigovtool.custodian.api.http import off_loop
from aigovtool.custodian.log_files import FolderDisk
from aigovtool.errors import MalformedError, NotFoundError
from aigovtool.tlog.tiles import CHECKPOINT_PATH, MAX_BUNDLE_BYTES, Tile
from aigovtool.wire.log import CERTIFICATE_NAME

_CHANGES = "no-cache"  # a reader that was shown an older checkpoint would miss what is new
_STAYS = "public, max-age=31536000, immutable"
_KINDS = {
    CHECKPOINT_PATH: ("text/plain; charset=utf-8", _CHANGES),
    CERTIFICATE_NAME: ("application/json", _STAYS),
}


async def send_log(request: Request, folder: Path, *, pool: Executor) -> Response:
    """
    Answer with the file of the log that the path names.

    Raises:
        NotFoundError: no such file, or a path that no file of a log has.
    """
    path = request.path_params["path"]
    kind, caching = _KINDS.get(path, ("application/octet-stream", _STAYS))
    try:
        known = path in _KINDS or Tile.parse(path).path == path
    except MalformedError:
        known = False
    data = None
    if known:
        disk = FolderDisk(folder)
        data = await off_loop(pool, lambda: disk.read(path, MAX_BUNDLE_BYTES))
    if data is None:
        raise NotFoundError("the log has no such file", code="log.missing")
    return Response(data, media_type=kind, headers={"Cache-Control": caching})
