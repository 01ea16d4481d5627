"""`python -m strnn_models.demo`."""

from strnn_models.demo import main

if __name__ == "__main__":
    main()
