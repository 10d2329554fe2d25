package sandbox_test

import (
	"context"
	"fmt"
	"os"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
	"creto.dev/sandbox/namespaces"
)

// A program that starts sandboxes first asks whether it is to be one.
func ExampleBackend() {
	if guest.Called(os.Args) {
		guest.Main()
	}
	backend := namespaces.New()
	result, err := backend.Run(context.Background(), sandbox.Spec{
		ID:      "run-1",
		Agent:   creto.ID{TrustDomain: "example.org", Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: "shop-bot"},
		Command: []string{"python3", "agent.py"},
		Dir:     "/", GatewayDir: "/tmp",
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	fmt.Println(result.ExitCode, fault.Message(err))
	// Output: -1 dir: "/" holds the system's files; choose a project directory
}
