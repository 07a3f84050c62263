"""Many runs of one config file: `python -m experiments.sweep`.

Launchers run them as processes, as one population on the devices, or by Slurm.
Which runs there are is in config/grid.py, their table in tables/.
"""
