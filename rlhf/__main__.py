"""`python -m rlhf`, also under torchrun and accelerate, is the `rlhf` command."""

from rlhf.cli.app import main

if __name__ == "__main__":
    main()
