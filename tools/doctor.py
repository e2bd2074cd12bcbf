#!/usr/bin/env python3
"""Check the environment: versions, device, and whether the operations fusiondet needs work; what to do where not.

Exit status: 0 everything works, 1 something does not.
"""

import argparse
import sys
from pathlib import Path

# To report a package that is not installed, the tool must not need it to be: not even fusiondet itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fusiondet.diagnostics import diagnose, report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    checks = diagnose()
    print(report(checks))
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
