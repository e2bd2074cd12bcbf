"""Bad inputs for the real tools: `python -m tests.fuzz` (`make fuzz`).

Sound small inputs are changed at random, and a tool is run on them in a process of its own. It may succeed or refuse
them with a message; a traceback, a crash, a hang and files left by a refusal are failures.

    material.py   sound inputs of every kind
    mutations.py  changes of numbers, JSON, text and bytes
    doors.py      the five doors: which tool runs on which changed input
    runner.py     one run in a process with limits, and its outcome
    __main__.py   the command
"""
