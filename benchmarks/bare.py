"""The bare app: what the same routes cost in plain Starlette, uvicorn and asyncio. `python benchmarks/bare.py PORT`"""

import asyncio
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "healthy"})


async def execute(request: Request) -> JSONResponse:
    body = await request.json()
    process = await asyncio.create_subprocess_exec(
        "/bin/bash", "-c", body["command"], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stdout, stderr = await process.communicate()
    return JSONResponse({"stdout": stdout.decode(), "stderr": stderr.decode(), "exitCode": process.returncode})


app = Starlette(routes=[Route("/health", health), Route("/execute", execute, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", loop="asyncio")
