"""FLOPs and sizes of the papers' networks: `experiments.tables.paper_costs`.

python -m experiments.paper_costs
"""

from experiments import cli
from experiments.tables import paper_costs

if __name__ == "__main__":
  cli.run(paper_costs.main, paper_costs.define_flags)
