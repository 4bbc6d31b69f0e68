"""`python -m tools.synthetic`."""

from utils import needs_package, run_script


def main() -> int | None:
    try:
        from tools.synthetic.draw import main as draw
    except ImportError as error:
        install = "pip install -r requirements-demo.txt"
        raise needs_package(error, "drawing a collection", install) from None
    return draw()


if __name__ == "__main__":
    run_script(main)
