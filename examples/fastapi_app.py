"""Dubbing inside a FastAPI application of your own, beside its other addresses.

    pip install '.[server]' python-multipart
    uvicorn --app-dir examples fastapi_app:app
    curl -F video=@talk.mp4 -F speech=@speech.wav http://127.0.0.1:8000/dub -o out.mp4

One engine for all requests, one dub at a time: a dub uses all cores. Files of strangers are decoded in limited
processes (`sandbox=True`). Add your own authentication and limits of size: `lipstream serve` has them, this does not.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from lipstream import LipStreamError, LipSyncEngine
from starlette.background import BackgroundTask


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.engine = await asyncio.to_thread(LipSyncEngine.load, "tiny")
    app.state.turn = asyncio.Lock()
    yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(LipStreamError)
async def refused(request: Request, error: LipStreamError) -> JSONResponse:
    """What is wrong with the files, and what to do: never a trace."""
    return JSONResponse({"code": error.code, "message": error.found, "fix": error.fix}, 422)


@app.post("/dub")
async def dub(video: UploadFile, speech: UploadFile) -> FileResponse:
    folder = TemporaryDirectory(prefix="dub-")
    try:
        paths = [Path(folder.name) / name for name in ("video", "speech", "out.mp4")]
        for upload, path in ((video, paths[0]), (speech, paths[1])):
            with path.open("wb") as file:
                await asyncio.to_thread(shutil.copyfileobj, upload.file, file)
        async with app.state.turn:
            await asyncio.to_thread(app.state.engine.dub, *paths, sandbox=True)
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(paths[2], background=BackgroundTask(folder.cleanup))
