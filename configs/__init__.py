"""Config files, one for each method and benchmark; installed with vpt_jax.

Outside a checkout: `from vpt_jax.configs import vapt_vtab`.
"""

import sys

# Config files import `configs.common`: this package, wherever it is.
sys.modules.setdefault("configs", sys.modules[__name__])
