"""Say what a bundle made here is for: its wheels install under any Python of which this says the same."""

import platform
import sys
import sysconfig

python = platform.python_implementation() + " " + ".".join(platform.python_version_tuple()[:2])
system = platform.system() + " " + platform.machine()
sys.stdout.write(python + " on " + system + " (" + str(sysconfig.get_config_var("SOABI")) + ")\n")
