package guest

import (
	"context"
	"net"

	"golang.org/x/net/bpf"
)

// LinkDial returns the sandbox's side of a link over conn.
func LinkDial(conn net.Conn) func(context.Context) (net.Conn, error) { return newLink(conn).dial }

// Filter and BrokerFilter return the system call filters.
func Filter() []bpf.Instruction       { return filter() }
func BrokerFilter() []bpf.Instruction { return brokerFilter() }

// AuditArch is this architecture's number.
const AuditArch = auditArch
