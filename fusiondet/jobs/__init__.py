"""One way to run many pieces of work, and to keep what is finished.

    executors   `open_executor`: this process, processes of this machine or a Dask cluster, all of them behind
                `concurrent.futures.Executor`; `completed` hands out tasks and yields results as they get finished
    store       `Store`: finished pieces of one output in a hidden folder beside it, resumable, locked, checked
    hashing     SHA-256 of files and of plain values, states of files

A job in three steps, whatever does the work:

    with Store(out, fingerprint) as store:
        left = ((name, piece) for name, piece in pieces if name not in store.finished())
        with open_executor(workers, scheduler) as executor:
            for name, content in completed(executor, make_piece, (settings,), left):
                store.save(name, content)
        with atomic_path(out) as path:
            merge((store.load(name) for name, _ in pieces), path)
        store.remove()
"""
