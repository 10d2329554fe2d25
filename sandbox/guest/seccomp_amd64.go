package guest

import "golang.org/x/sys/unix"

// auditArch is this architecture in struct seccomp_data.
const auditArch = unix.AUDIT_ARCH_X86_64

// deniedHere are denied calls that only this architecture has.
func deniedHere() []uintptr {
	return []uintptr{
		unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS_USTAT, unix.SYS_SYSFS, unix.SYS__SYSCTL,
		unix.SYS_CREATE_MODULE, unix.SYS_GET_KERNEL_SYMS, unix.SYS_QUERY_MODULE,
	}
}
