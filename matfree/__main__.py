"""``python -m matfree``: the command line where the script ``matfree`` is not on the path."""

import sys

from matfree.cli import main

sys.exit(main())
