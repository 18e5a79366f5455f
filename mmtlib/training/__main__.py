"""`torchrun -m mmtlib.training RUN`: see mmtlib.training.stage."""

import sys

from mmtlib.training.stage import main

sys.exit(main())
