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
		fail("usage: probe NAME ARG…")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "supervise":
		supervise(args[0], args[1], args[2], args[3:])
	case "tree":
		tree()
	case "dial":
		dial(args[0], args[1])
	case "http":
		request(args[0], args[1], args[2])
	case "connect":
		connect(args[0])
	case "syscalls":
		syscalls()
	case "status":
		status()
	case "spawn":
		spawn(args[0])
	case "child":
		select {}
	case "unix":
		talk()
	case "signals":
		signals()
	default:
		fail("no probe %q", os.Args[1])
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(99)
}

// supervise runs a command in a sandbox, as the command line does.
func supervise(engine, dir, gateway string, command []string) {
	var backend sandbox.Backend
	switch sandbox.Isolation(engine) {
	case sandbox.GVisor:
		backend = gvisor.New(gvisor.Config{})
	case sandbox.Namespaces:
		backend = namespaces.New()
	default:
		fail("no engine %q", engine)
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
		fail("%v", err)
	}
	os.Exit(result.ExitCode)
}
