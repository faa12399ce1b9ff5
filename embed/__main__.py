"""`python -m dpmepf.embed` is `dpmepf-embed`."""

from dpmepf.embed.command import main

main(prog_name="dpmepf-embed")
