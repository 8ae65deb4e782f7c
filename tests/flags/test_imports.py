"""What importing the package asks for."""

import subprocess
import sys

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("UnleashClient", "yggdrasil_engine", "requests", "apscheduler"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import tidegate.flags
assert tidegate.flags.__all__ == sorted(tidegate.flags.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
for name in tidegate.flags.__all__:
    getattr(tidegate.flags, name)
try:
    import tidegate.flags.unleash
except ModuleNotFoundError as error:
    print("absent:", error)
"""


def test_the_package_works_without_the_unleash_sdk() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == ("absent: UnleashClient\n", "")
