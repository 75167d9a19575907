"""Run `fdbox` as somebody else: `python -m tests.service.as_user UID WORD...`.

All code is imported first: that user need not be allowed to read it.
"""

from __future__ import annotations

import codecs
import os
import pwd
import sys

from fdbox.cli.main import main

if __name__ == "__main__":
    uid = int(sys.argv[1])
    for lazy in (lambda: codecs.lookup("ascii"), lambda: pwd.getpwuid(os.getuid())):
        lazy()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    sys.argv = ["fdbox", *sys.argv[2:]]
    main()
