"""`python -m tools.synthetic`."""

from tools.synthetic.collection import main
from utils import run_script

if __name__ == "__main__":
    run_script(main)
