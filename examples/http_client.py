"""Ask a server about many photos at once:  handmesh serve, then

    python examples/http_client.py http://127.0.0.1:8000 photo.jpg other.jpg

Other languages do the same: post the photo's bytes, read JSON (docs/start/first_server.md).
"""

import asyncio
import sys
from pathlib import Path

import httpx


async def ask(client: httpx.AsyncClient, photo: Path) -> dict:
    # 429: it is full; 503: it is just starting. Both say when to ask again.
    while (answer := await client.post("/v1/hands", content=photo.read_bytes())).status_code in (429, 503):
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    return answer.json()


async def main(address: str, *photos: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:  # headers={"Authorization": "Bearer ..."}
        answers = await asyncio.gather(*(ask(client, Path(photo)) for photo in photos))
    for photo, answer in zip(photos, answers, strict=True):
        if "hands" not in answer:
            print(f"{photo}: {answer['detail']}")
            continue
        for hand in answer["hands"]:
            origin = [round(metres, 3) for metres in hand["translation"]]  # of the hand frame: 9 cm beside the wrist
            print(f"{photo}: {hand['handedness']} hand, score {hand['score']:.2f}, {origin} m from the camera")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
