"""Check every annotated shape of the package while it is tested, and leave the cores to the test processes."""

import torch
from jaxtyping import install_import_hook

install_import_hook("fewstep", "beartype.beartype")
torch.set_num_threads(1)
