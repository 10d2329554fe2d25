// Command probe is the conformance suite's helper, built static: the sandbox's
// first process, a supervisor to be killed, and the programs inside.
package main

import (
	"context"
	"fmt"
	"os"

	"creto.dev"
	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
	"creto.dev/sandbox/gvisor"
	"creto.dev/sandbox/namespaces"
)

func main() {
	if guest.Called(os.Args) {
		guest.Main()
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: probe NAME ARG…")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "supervise":
		supervise(os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	}
}

// supervise runs a command in a sandbox, as `creto run` does.
func supervise(engine, dir, gateway string, command []string) {
	var backend sandbox.Backend
	switch engine {
	case "gvisor":
		backend = gvisor.New(gvisor.Config{})
	case "namespaces":
		backend = namespaces.New()
	}
	result, err := backend.Run(context.Background(), sandbox.Spec{
		ID: fmt.Sprintf("probe-%d", os.Getpid()), Agent: creto.ID{TrustDomain: "test", Tenant: "default", Kind: creto.KindAgent, Name: "probe"},
		Command: command, Dir: dir, GatewayDir: gateway,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Started: func(s sandbox.Started) {
			fmt.Fprintf(os.Stderr, "started %d after %v without %v\n", s.PID, s.After, s.Unenforced)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(result.ExitCode)
}
