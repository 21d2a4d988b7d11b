"""torchrun's own launcher, in a process that dies with its parent: `python -m … <torchrun's arguments>`."""

from .lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    from torch.distributed.run import main

    main()
