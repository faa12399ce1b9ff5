"""`python -m dpmepf.synthesize` is `dpmepf-synth`."""

from dpmepf.synthesize.command import main

if __name__ == "__main__":
    main(prog_name="dpmepf-synth")
