"""``python -m latentprint``: the command line."""

if __name__ == "__main__":
    from latentprint.flows.cli.main import main

    main()
