"""The workflows of `flows.py` as targets of `llamactl`, without a time limit; each is shared by its runs."""

from tests.faults.programs.flows import FLOWS

for _name, _flow in FLOWS.items():
    globals()[_name] = _flow(timeout=None)
