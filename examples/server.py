"""An HTTP server that labels pictures.

    pip install fastapi uvicorn
    uvicorn --app-dir examples server:app
    curl --data-binary @exports/samples/bag.png http://127.0.0.1:8000/predict

It has no limit on requests and no encryption: let it listen on this machine alone, or put a proxy before it.
"""

from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

import fmcae

MAX_BYTES = 20 * 2**20
app = FastAPI(title="fmcae")
model = fmcae.load(threads=1)  # one for all requests: threads may share it


@app.post("/predict")
async def predict(request: Request) -> dict[str, object]:
    """The label of the picture that the request's body is, in any common format."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"a picture may have {MAX_BYTES:,} bytes")
    try:
        prediction = await run_in_threadpool(model.predict, body)
    except fmcae.ImageError as error:
        raise HTTPException(422, str(error)) from error
    return {name: getattr(prediction, name) for name in ("label", "probability", "known", "known_score")}
