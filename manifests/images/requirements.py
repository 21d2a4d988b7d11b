"""Print the requirements of the package and of some of its extras: `requirements.py [EXTRA …]` beside setup.cfg.

With them a build installs what seldom changes before it copies the code, which often does.
"""

import configparser
import sys

setup = configparser.ConfigParser()
setup.read("setup.cfg")
print(setup["options"]["install_requires"])
for extra in sys.argv[1:]:
    print(setup["options.extras_require"][extra])
