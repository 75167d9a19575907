"""A jump tried in QEMU first: pack.py puts us into an initrd, guest.py is what runs there, qemu.py boots it and hears."""
