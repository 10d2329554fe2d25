package guest

import "golang.org/x/sys/unix"

// auditArch is this architecture in struct seccomp_data.
const auditArch = unix.AUDIT_ARCH_AARCH64

// deniedHere are denied calls that only this architecture has.
func deniedHere() []uintptr { return nil }
