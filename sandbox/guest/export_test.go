package guest

import (
	"context"
	"net"

	"golang.org/x/net/bpf"
)

// LinkDial returns the sandbox's side of a link over conn.
func LinkDial(conn net.Conn) func(context.Context) (net.Conn, error) { return newLink(conn).dial }

// Filters returns the system call filters.
func Filters() [][]bpf.Instruction { return [][]bpf.Instruction{filter(), brokerFilter()} }
