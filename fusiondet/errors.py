"""The one exception that means "the user's input is wrong", free of any import so every layer can raise it."""


class InputError(ValueError):
    """Bad input: a file, option, config key or layer that cannot be used as given.

    The message names the file or key, what was expected, what was found, and what to do. Command-line tools print
    it on one line and exit with status 2 (`fusiondet.cli.run`); library callers catch it as a ValueError.
    """


def unknown_name(kind: str, name: str, known) -> InputError:
    """InputError for a misspelt `name` of some `kind` that lists the right ones, nearest first."""
    import difflib

    known = sorted(map(str, known))
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")
