"""``python -m matfree``: the command line, for environments without the script on the path."""

import sys

from matfree.cli import main

sys.exit(main())
