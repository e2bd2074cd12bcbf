"""A worker of a dask cluster in a process that nobody starts again."""

# Run by processes that have the package imported already: starting Python for each takes longer than a test.
_CODE = """
import asyncio, distributed

async def work():
    async with distributed.Worker({address!r}, nthreads={threads}, dashboard_address=None) as worker:
        await worker.finished()

asyncio.run(work())
"""


def start_workers(context, address, count, threads=1):
    """`count` processes of the multiprocessing `context`, each of them a worker of the scheduler at `address`."""
    code = _CODE.format(address=address, threads=threads)
    processes = [context.Process(target=exec, args=(code, {}), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return processes
