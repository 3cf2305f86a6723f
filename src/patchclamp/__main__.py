"""`python -m patchclamp`, the same as the command `patchclamp`."""

from patchclamp.cli import main

if __name__ == "__main__":
    main()
